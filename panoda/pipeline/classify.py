"""A run of ``panoda classify``: data, resume folder, MLflow run and record around the work.

It is no stage: it judges encoders, of this project or not, and needs no params.yaml.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from panoda.classification.city_objects import city_objects
from panoda.classification.evaluate import evaluate
from panoda.classification.params import CITY, EvaluateParams, FinetuneParams, ProbeParams
from panoda.classification.training import judge
from panoda.config import RuntimeParams, TrackingParams
from panoda.data.formats.browse import images_below
from panoda.engine.preemption import sigterm_ends
from panoda.pipeline import runs
from panoda.pipeline.table import flatten
from panoda.system.context import (
    MetricLogger,
    RunContext,
    resolve_device,
    resolve_precision,
    resolve_workers,
)
from panoda.system.files import check_replaceable, write_json

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
CODE = tuple(
    Path("panoda") / room for room in ("classification", "engine", "data", "models", "city", "system")
)


def classify(
    params: FinetuneParams | ProbeParams | EvaluateParams,
    *,
    out: Path | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    progress: bool = True,
) -> tuple[Path, dict[str, float]]:
    """Fine-tune, probe or evaluate; a killed run goes on when it is started again.

    Args:
        params: What to do; its kind says which of the three.
        out: Result folder; None makes runs/classify-ACTION-TIME-ID.
        runtime: Device, precision and the like; one process trains.
        tracking: Where MLflow logs, if it is installed; None = experiment classify.

    Returns:
        The result folder, and ``top1`` and ``top5``.

    Raises:
        ValueError: data, files or parameters that do not go together; nothing is written then.
        Preempted: SIGTERM or ctrl-C; the resume state is kept.
    """
    runtime, tracking = runtime or RuntimeParams(), tracking or TrackingParams(experiment="classify")
    name = f"classify-{params.action}"
    weights = Path(params.checkpoint if isinstance(params, EvaluateParams) else params.encoder)
    with sigterm_ends():
        if out is not None:
            read = [Path(params.data)] if params.data != CITY else []
            read += [weights] if weights.exists() else []
            check_replaceable(out, made=[runs.RECORD], inputs=read)
        data = city_objects(progress=progress) if params.data == CITY else Path(params.data)
        inputs = {"data": _listing(data), "weights": runs.digest(weights) if weights.is_file() else ""}
        asked = params.model_dump(mode="json")
        mark = runs.fingerprint(name, asked, inputs, runs.code_digest(CODE))
        device = resolve_device(runtime.device)
        with (
            runs.resume_state(name, mark, say=log.warning) as state,
            _tracked(name, asked, tracking, state) as logger,
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
            place = out or runs.new_run_folder(name)
            if isinstance(params, EvaluateParams):
                metrics = evaluate(data, place, params, context=context)
            else:
                metrics = judge(data, place, params, context=context)
            context.logger.log_metrics(metrics, 0)
            write_json(
                place / runs.RECORD, {"action": name, "params": asked, "inputs": inputs, **runs.provenance()}
            )
    return place, metrics


def _listing(folder: Path) -> str:
    """Names and sizes of the images: hashing a million of them would take longer than it is worth."""
    if not folder.is_dir():
        return ""  # said with what is expected there when it is read
    found, _ = images_below(folder)
    lines = {path.relative_to(folder).as_posix(): str(path.stat().st_size) for path in found}
    return runs.fingerprint("listing", {}, lines, "")


@contextmanager
def _tracked(name: str, params: dict[str, Any], tracking: TrackingParams, state: Path) -> Iterator[Any]:
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
