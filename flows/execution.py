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

from pydantic import Field

from panoda import runs
from panoda.config import ConfigError, Params, RuntimeParams, Section, load_params, parse_params
from panoda.files import write_json
from panoda.locks import file_lock, gpu_lock_path
from panoda.pipeline import Stage, flatten, get_stage
from panoda.training.preemption import sigterm_ends

if TYPE_CHECKING:
    import torch

    from panoda.pieces import Runner
    from panoda.training.context import RunContext

log = logging.getLogger("panoda")
GPU_LIMIT = "gpu"


class Job(Section):
    """Where a flow takes its parameters and inputs from, and where its result goes."""

    pipeline: bool = False
    """Write the DVC output of the stage instead of a run folder; what dvc.yaml does."""
    params: str = "params.yaml"
    """File with the sections that are not given."""
    overrides: list[str] = Field(default_factory=list)
    """``section.key=value`` changes to that file."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Input name -> path, instead of the pipeline's."""
    out: str | None = None
    """Result folder; null makes runs/<stage>-<time>-<id>."""


HERE = Job()
"""params.yaml, the pipeline's inputs, a new run folder."""


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
        params = _effective(job, sections)
        inputs = _inputs(stage, job, role, params)
        out = _out(stage, job, role)
        record = _record(stage, role, params, inputs, job)
        mark = runs.fingerprint(record["label"], record["params"], _digests(record), record["code"])
        # Imported here: what is wrong above is reported before torch loads.
        from panoda.training.context import RunContext, resolve_precision, resolve_workers
        from panoda.training.failures import explained

        state = stack.enter_context(runs.resume_state(stage.folder_name(role), mark, say=log.warning))
        device, devices = _devices(stage, params, stack)
        record |= _sharing(stage, params, devices)
        logger = stack.enter_context(_tracked(stage, params, record, state))
        context = RunContext(
            device=device,
            dtype=resolve_precision(params.runtime.precision, device),
            logger=logger,
            state_dir=state,
            workers=resolve_workers(params.runtime.workers, device, devices),
            progress=True,
            keep_checkpoints=params.runtime.keep_checkpoints,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
            on_oom=params.runtime.on_oom,
            compile=params.runtime.compile,
            deform=params.runtime.deform,
            deterministic=params.runtime.deterministic,
            devices=devices,
            shard=params.runtime.shard == "fsdp",
            fan_out=stack.enter_context(_fan_out(stage, params.runtime)),
        )
        run = StageRun(params, inputs, out, context, record)
        stack.enter_context(_recorded(run, job, out))
        stack.enter_context(explained(lambda: f"stage {stage.name}, on {device}", lambda: _smaller(stage)))
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


def _effective(job: Job, sections: Mapping[str, Any]) -> Params:
    base = load_params(Path(job.params), job.overrides)
    given = {
        key: value.model_dump(mode="json") if isinstance(value, Section) else value
        for key, value in sections.items()
        if value is not None
    }
    return parse_params({**base.model_dump(mode="json"), **given}, "flow parameters") if given else base


def _inputs(stage: Stage, job: Job, role: str | None, params: Params) -> dict[str, Path]:
    paths = stage.input_paths(role, params)
    unknown = set(job.inputs) - set(paths)
    if unknown:
        raise ConfigError(
            f"--input {', '.join(sorted(unknown))}: stage {stage.name} has no such input; "
            f"it has {', '.join(paths) or 'none'}"
        )
    for name, given in job.inputs.items():
        path = Path(given)
        # A run folder stands for the model in it.
        is_model = paths[name].suffix == ".safetensors"
        paths[name] = path / paths[name].name if is_model and path.is_dir() else path
    return paths


def _out(stage: Stage, job: Job, role: str | None) -> Path:
    if job.pipeline:
        if job.inputs or job.overrides or job.out or job.params != "params.yaml":
            raise ConfigError(
                "--pipeline writes DVC's output, so it takes params.yaml and the pipeline's inputs only"
            )
        return stage.out_path(role)
    if job.out is None:
        return runs.new_run_folder(stage.folder_name(role))
    out = Path(job.out)
    root = Path.cwd()
    for kept in ("data", "outputs", "reports", "panoda", "flows", ".git", ".dvc"):
        if out.resolve() in (root, *root.parents) or (root / kept) in (out.resolve(), *out.resolve().parents):
            raise ConfigError(f"--out {out}: not a place for a run by hand; use a folder below runs/")
    if out.exists() and (not out.is_dir() or any(out.iterdir()) and not (out / runs.RECORD).is_file()):
        raise ConfigError(f"--out {out}: exists and is no run folder; choose an empty or new one")
    return out


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
            for name, path in inputs.items()
        },
        "code": runs.code_digest(stage.module, registries=stage.registries),
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


def _devices(stage: Stage, params: Params, stack: ExitStack) -> tuple[torch.device, int]:
    """The device and how many processes train on such ones; GPUs are held against other stages."""
    import torch

    from panoda.training.context import resolve_device, resolve_devices, set_deterministic, set_threads

    runtime = params.runtime
    set_threads(runtime.threads)
    set_deterministic(runtime.deterministic)
    if stage.on_gpu:  # else no model is computed with, and importing them takes seconds
        from panoda.models.deform.choice import use_deform

        use_deform(runtime.deform)
    elsewhere = runtime.cluster is not None and runtime.cluster.address and stage.in_pieces == "all"
    device = resolve_device(runtime.device if stage.on_gpu and not elsewhere else "cpu")
    count = resolve_devices(runtime.devices, device, **_shared(stage, params)) if stage.trains else 1
    if device.type == "cuda":
        # One order for all stages: two that want the same GPUs never hold one each.
        for gpu in [device] if count == 1 else [torch.device("cuda", i) for i in range(count)]:
            identity = str(torch.cuda.get_device_properties(gpu).uuid)
            stack.enter_context(file_lock(gpu_lock_path(identity), what=f"GPU {gpu}", say=log.warning))
        stack.enter_context(_gpu_slot())
    return device, count


def _batch(stage: Stage, params: Params) -> int:
    return int(getattr(params, stage.trains).batch_size)


def _shared(stage: Stage, params: Params) -> dict[str, int]:
    """What divides between processes."""
    own = getattr(params, stage.trains)
    return {"batch_size": own.batch_size, "accumulate": own.accumulate}


def _smaller(stage: Stage) -> str:
    """What to lower when memory runs out outside of a training step, which has a message of its own."""
    if stage.trains:
        return f"Lower {stage.trains}.batch_size"
    if not stage.on_gpu:
        return "Free some memory, or use a machine that has more"
    advice = f"Lower {stage.name}.batch_size or the largest of {stage.name}.scales"
    return f"{advice}, or set evaluate.sliding" if stage.name == "evaluate" else advice


def _sharing(stage: Stage, params: Params, devices: int) -> dict[str, Any]:
    """What the record says of the processes that train; several are announced."""
    if not stage.trains:
        return {}
    batch = _batch(stage, params)
    if devices > 1:
        log.warning(
            "%s: %d processes, each with %d of the %d images of every step (and domain)",
            stage.name,
            devices,
            batch // devices,
            batch,
        )
    return {"processes": devices, "batch_size": batch, "batch_size_per_process": batch // devices}


@contextmanager
def _gpu_slot() -> Iterator[None]:
    """A slot of the Prefect server's limit ``gpu``.

    Only a lasting server frees the slot of a killed process; with a temporary one the file lock, which the
    kernel frees, does the work alone.
    """
    from prefect.concurrency.sync import concurrency
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        yield
        return
    with concurrency(GPU_LIMIT, occupy=1, strict=False):
        yield


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
    if run.record["pipeline"]:
        register_adapted(logger, stage.name, run.params, run.out)


def register_adapted(logger: Any, stage: str, params: Params, out: Path) -> None:
    """Register the adapted model when ``stage`` made the pipeline's last one."""
    name = f"panoda-{params.scenario}"
    if stage == "adapt" and params.rounds == 1:
        logger.register_model(name)
    elif stage == "rounds" and params.rounds > 1:
        last = out / f"round{params.rounds}" / "adapt" / "model.safetensors"
        logger.log_artifact(last)
        logger.register_model(name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
