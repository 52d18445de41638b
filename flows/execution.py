"""What every flow does around its stage: parameters, inputs, output folder, locks, tracking, record."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flows.devices import shares, take_devices, what_to_lower
from flows.dvc_cache import copy_of_outputs
from flows.job import Job
from panoda.config import Params, RuntimeParams
from panoda.engine.preemption import sigterm_ends
from panoda.pipeline import runs
from panoda.pipeline.named_files import named_files
from panoda.pipeline.table import Stage, flatten, get_stage
from panoda.system.files import write_json

if TYPE_CHECKING:
    from panoda.system.context import RunContext
    from panoda.system.pieces import Runner

log = logging.getLogger("panoda")


@dataclass
class StageRun:
    """An open run of a stage.

    Attributes:
        params: The whole tree, with overrides applied.
        inputs: Input name -> path.
        out: Result folder.
        context: Device, precision, logger, resume folder.
        record: What run.json will say.
    """

    params: Params
    inputs: dict[str, Path]
    out: Path
    context: RunContext
    record: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)

    def finish(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Keep the stage's metrics; the flow returns them."""
        self.metrics = dict(metrics)
        return self.metrics


@contextmanager
def stage_run(name: str, job: Job, *, role: str | None = None, **sections: Any) -> Iterator[StageRun]:
    """Everything around a stage function.

    Args:
        name: Stage name.
        job: Where from, where to.
        role: source or target, for the stages that exist once per domain.
        **sections: Sections of params.yaml; None takes the file's.

    Raises:
        ValueError: parameters, inputs or the output folder do not fit; nothing was changed then.
        OutOfMemory: the message says what to lower.
        NotDeterministic: deterministic mode, and an operator that knows none.
        Preempted: SIGTERM, or ctrl-C while a model trained; the resume state is kept.
    """
    with ExitStack() as stack:
        stack.enter_context(sigterm_ends())
        stage = get_stage(name)
        params = job.effective(sections)
        inputs = job.input_paths(stage, role, params)
        out = job.out_path(stage, role)
        record = _record(stage, role, params, inputs, job)
        mark = runs.fingerprint(record["label"], record["params"], _digests(record), record["code"])
        # Imported here: what is wrong above is reported before torch loads.
        from panoda.engine.failures import explained
        from panoda.pipeline.runnable import check_runnable
        from panoda.system.context import RunContext, resolve_precision, resolve_workers

        check_runnable(params)
        state = stack.enter_context(runs.resume_state(stage.folder_name(role), mark, say=log.warning))
        device, devices = take_devices(stage, params, stack)
        record |= shares(stage, params, devices)
        logger = stack.enter_context(_tracked(stage, params, record, state))
        context = RunContext(
            device=device,
            dtype=resolve_precision(params.runtime.precision, device),
            logger=logger,
            state_dir=state,
            workers=resolve_workers(params.runtime.workers, device, devices),
            progress=True,
            log_every=params.runtime.log_every,
            checkpoint_every=params.runtime.checkpoint_every,
            inference_batch=params.runtime.inference_batch,
            piece_images=params.runtime.piece_images,
            keep_checkpoints=params.runtime.keep_checkpoints,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
            on_oom=params.runtime.on_oom,
            compile=params.runtime.compile,
            deterministic=params.runtime.deterministic,
            devices=devices,
            shard=params.runtime.shard == "fsdp",
            cache=copy_of_outputs() if stage.name == "preprocess" and job.pipeline else None,
            fan_out=stack.enter_context(_fan_out(stage, params.runtime)),
        )
        run = StageRun(params, inputs, out, context, record)
        stack.enter_context(_recorded(run, job, out))
        stack.enter_context(
            explained(lambda: f"stage {stage.name}, on {device}", lambda: what_to_lower(stage))
        )
        yield run
        _log_results(stage, run)


def parameter_differences(record: Mapping[str, Any], params: Params, role: str | None) -> list[str]:
    """Dotted parameters in which a run's record differs from ``params``, with both values."""
    mine = flatten(record["params"])
    theirs = flatten(get_stage(record["stage"]).params(params, role))
    keys = sorted(set(mine) | set(theirs))
    return [
        f"{k}: {mine.get(k)!r} instead of {theirs.get(k)!r}" for k in keys if mine.get(k) != theirs.get(k)
    ]


def _record(
    stage: Stage, role: str | None, params: Params, inputs: Mapping[str, Path], job: Job
) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "role": role,
        "label": stage.label(role),
        "scenario": params.scenario,
        "seed": params.seed,
        "pipeline": job.pipeline,
        "params": stage.params(params, role),
        "inputs": {
            name: {"path": str(path), "digest": runs.digest(path), "run": runs.run_of_input(path)}
            for name, path in {**inputs, **named_files(stage.name, role, params)}.items()
        },
        "code": runs.code_digest(stage.code_paths(params)),
        "status": "running",
        "started": _now(),
        **runs.provenance(),
    }


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: found["digest"] for name, found in record["inputs"].items()}


@contextmanager
def _fan_out(stage: Stage, runtime: RuntimeParams) -> Iterator[Runner | None]:
    """The workers of a cluster, for stages that work in pieces."""
    if runtime.cluster is None or stage.in_pieces == "none":
        yield None
        return
    from flows.fan_out import workers

    with workers(runtime, runtime.cluster) as runner:
        yield runner


@contextmanager
def _tracked(stage: Stage, params: Params, record: dict[str, Any], state: Path) -> Iterator[Any]:
    from panoda import tracking

    note = state / "mlflow.json"
    earlier = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    # Noted before there is a run: who is killed right after opening one finds it again.
    start = earlier.get("start") or uuid4().hex
    write_json(note, {**earlier, "start": start})
    data = {k: v for k, v in record["inputs"].items() if not v["path"].endswith(".safetensors")}
    parents = [v["run"] for v in record["inputs"].values() if v["run"]]
    with tracking.start_run(
        tracking.tracking_uri(params.tracking.uri),
        params.tracking.experiment,
        stage=record["stage"],
        name=record["label"],
        params=flatten(record["params"]),
        tags={
            "scenario": params.scenario,
            "seed": params.seed,
            "role": record["role"],
            "git_commit": record["git_commit"],
            "git_dirty": record["git_dirty"],
            "dvc_lock": record["dvc_lock"],
            "code": record["code"],
            "parent_run": parents[0] if parents else None,
            "origin": "pipeline" if record["pipeline"] else "hand",
            "processes": record.get("processes"),
            "start": start,
        },
        datasets=[tracking.DatasetRecord(k, v["digest"], v["path"]) for k, v in data.items()],
        run_id=earlier.get("run_id"),
        start=earlier.get("start"),
        warn=log.warning,
    ) as logger:
        record["mlflow_run_id"] = logger.run_id
        write_json(note, {"start": start, "run_id": logger.run_id})
        yield logger


@contextmanager
def _recorded(run: StageRun, job: Job, out: Path) -> Iterator[None]:
    """Write the record at the start, and again with how it ended."""
    place = runs.pipeline_record(run.record["label"]) if job.pipeline else out / runs.RECORD
    clock = time.monotonic()
    write_json(place, run.record)
    status = "failed"
    try:
        yield
        status = "finished"
    except BaseException as error:
        run.record["error"] = str(error) or type(error).__name__
        raise
    finally:
        ended = {"status": status, "ended": _now(), "seconds": round(time.monotonic() - clock, 2)}
        run.record |= ended | {"device": str(run.context.device), "metrics": run.metrics}
        write_json(place, run.record)


def _log_results(stage: Stage, run: StageRun) -> None:
    """Files of the result, and the registered model of the pipeline's last adaptation."""
    logger: Any = run.context.logger
    logger.set_tags({"out": run.out})
    for name in (
        "model.safetensors",
        "prototypes.safetensors",
        "metrics.json",
        "statistics.json",
        "history.csv",
        "loss_spikes.csv",
        "index.html",
    ):
        if (run.out / name).is_file():
            logger.log_artifact(run.out / name)
    for name in ("classes.csv", "per_class.csv", "by_latitude.csv", "by_azimuth.csv", "groups.csv"):
        if (run.out / name).is_file():
            logger.log_artifact(run.out / name)
    if stage.name == "evaluate":
        inputs = run.record["inputs"]
        datasets = {name: found["digest"] for name, found in inputs.items() if not found["run"]}
        logger.link_evaluation([found["run"] for found in inputs.values() if found["run"]], datasets)
    if run.record["pipeline"]:
        register_adapted(logger, stage.name, run.params, run.out)


def register_adapted(logger: Any, stage: str, params: Params, out: Path) -> None:
    """Register the adapted model when ``stage`` made the pipeline's last one."""
    name = f"panoda-{params.scenario}"
    if stage == "adapt" and params.rounds == 1:
        logger.register_model(name, out / "model.safetensors")
    elif stage == "rounds" and params.rounds > 1:
        last = out / f"round{params.rounds}" / "adapt" / "model.safetensors"
        logger.log_artifact(last)
        logger.register_model(name, last)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
