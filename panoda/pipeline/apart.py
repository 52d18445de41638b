"""Work that is no stage of the pipeline, such as ``panoda classify`` and ``panoda adapt``: resumable, and in MLflow."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from panoda.config import RuntimeParams, TrackingParams
from panoda.data.formats.browse import images_below
from panoda.engine.preemption import sigterm_ends
from panoda.pipeline import runs
from panoda.pipeline.table import flatten
from panoda.system.context import MetricLogger, RunContext, resolve_device, resolve_precision, resolve_workers
from panoda.system.files import write_json

log = logging.getLogger("panoda")
TAKEN = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "checkpoint_minutes",
    "compile",
    "deterministic",
)
"""Of section runtime, as it is."""


@contextmanager
def apart(
    name: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    code: Sequence[Path],
    runtime: RuntimeParams,
    tracking: TrackingParams,
    progress: bool,
) -> Iterator[RunContext]:
    """The context of such work: a killed run with the same parameters, inputs and code goes on when started again.

    Args:
        name: What it is called in MLflow, and its resume folder.
        params: What was asked for, nested.
        inputs: Digests of what is read.
        code: Folders whose code decides the result.
        runtime: Device, precision and the like; one process trains.
        tracking: Where MLflow logs, if it is installed.
        progress: Show progress bars.
    """
    mark = runs.fingerprint(name, dict(params), dict(inputs), runs.code_digest(code))
    device = resolve_device(runtime.device)
    with (
        sigterm_ends(),
        runs.resume_state(name, mark, say=log.warning) as state,
        _tracked(name, params, tracking, state) as logger,
    ):
        context = RunContext(
            device=device,
            dtype=resolve_precision(runtime.precision, device),
            logger=logger,
            state_dir=state,
            workers=resolve_workers(runtime.workers, device),
            progress=progress,
            **{name: getattr(runtime, name) for name in TAKEN},
        )
        yield context


def listing(folder: Path) -> str:
    """A digest of names and sizes of the images: hashing a million of them would take longer than it is worth."""
    if not folder.is_dir():
        return ""  # said with what is expected there when it is read
    found, _ = images_below(folder)
    lines = {path.relative_to(folder).as_posix(): str(path.stat().st_size) for path in found}
    return runs.fingerprint("listing", {}, lines, "")


@contextmanager
def _tracked(name: str, params: Mapping[str, Any], tracking: TrackingParams, state: Path) -> Iterator[Any]:
    """The logger of an MLflow run, or of the killed one's again; one that keeps nothing without MLflow."""
    if find_spec("mlflow") is None:
        yield MetricLogger()
        return
    from panoda.tracking import start_run, tracking_uri

    note = state / "mlflow.json"
    start = json.loads(note.read_text(encoding="utf-8"))["start"] if note.is_file() else uuid4().hex
    write_json(note, {"start": start})
    with start_run(
        tracking_uri(tracking.uri),
        tracking.experiment,
        stage=name,
        name=name,
        params=flatten(params),
        tags={"start": start},
        start=start,
        warn=log.warning,
    ) as logger:
        yield logger
