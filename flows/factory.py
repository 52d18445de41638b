"""The flow of a stage, made from the table of stages: typed parameters, and the call of the stage function."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import Flow, flow

from flows.execution import StageRun, stage_run
from flows.job import HERE, Job
from panoda.config import params_model
from panoda.pipeline.runs import pipeline_record
from panoda.pipeline.table import STAGES, Stage, get_stage


def stage_flow(name: str) -> Flow[..., dict[str, float]]:
    """The Prefect flow of a stage: its sections as typed parameters (null takes the params file's), and a job."""
    stage = get_stage(name)

    def run_stage(**given: Any) -> dict[str, float]:
        role, job = given.pop("role", None), given.pop("job", HERE)
        with stage_run(stage.name, job, role=role, **given) as run:
            if job.pipeline and stage.per_role:
                # An input of every training stage, empty as a rule: DVC wants the folder to exist.
                Path("data/prepared/more_sources").mkdir(parents=True, exist_ok=True)
            return run.finish(_call(stage, run, role))

    run_stage.__name__ = run_stage.__qualname__ = stage.name
    run_stage.__module__ = f"flows.{stage.name}"
    parameters = _parameters(stage)
    run_stage.__signature__ = inspect.Signature(parameters, return_annotation=dict[str, float])  # type: ignore[attr-defined]
    run_stage.__annotations__ = {p.name: p.annotation for p in parameters}
    run_stage.__doc__ = _documentation(stage)
    return flow(name=stage.name.replace("_", "-"))(run_stage)


def _parameters(stage: Stage) -> list[inspect.Parameter]:
    kinds: dict[str, tuple[Any, Any]] = {"role": (str, inspect.Parameter.empty)} if stage.per_role else {}
    for section in (*stage.flow_sections, "runtime", "tracking"):
        kinds[section] = (params_model().model_fields[section].annotation | None, None)  # type: ignore[operator]
    kinds["job"] = (Job, HERE)
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in kinds.items()
    ]


def _documentation(stage: Stage) -> str:
    lines = [f"Stage {stage.name}: {stage.description}.", "", "Args:"]
    if stage.per_role:
        lines.append("    role: Which domain of section data: source, target, or a further source.")
    for section in (*stage.flow_sections, "runtime", "tracking"):
        lines.append(f"    {section}: Section {section}; null takes the params file's.")
    return "\n".join([*lines, "    job: Where parameters and inputs come from, where the result goes."])


def _call(stage: Stage, run: StageRun, role: str | None) -> dict[str, float]:
    """Call the stage function with those of a run's values that it names.

    ``params`` is the stage's own section, or all its parameters where it has none; ``models`` are the inputs that
    it does not name.
    """
    # Imported here: torch loads while the server starts.
    function = getattr(importlib.import_module(stage.module), stage.name)
    names = inspect.signature(function).parameters
    sections = {section: getattr(run.params, section) for section in stage.flow_sections}
    offered: dict[str, Any] = {
        "params": sections.get(stage.name, sections.get(stage.trains, run.record["params"])),
        "models": {name: path for name, path in run.inputs.items() if name not in names},
        "out": run.out,
        "context": run.context,
        "progress": run.context.progress,
        "role": role,
        **sections,
        **run.inputs,
    }
    if role is not None:
        domain = run.params.data.domains[role]
        offered |= {"domain": domain, "dataset": domain.dataset}
    if "provenance" in names:
        offered["provenance"] = provenance(run.record)
    return dict(function(**{name: value for name, value in offered.items() if name in names}))


def provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """Commit, lock file and, for each stage of the pipeline, when and where it ran last."""
    found: dict[str, Any] = {key: record[key] for key in ("git_commit", "git_dirty", "dvc_lock", "scenario")}
    roles = tuple(record["params"].get("data", ()))
    labels = [s.label(r) for s in STAGES.values() for r in (roles if s.per_role else (None,))]
    for label in labels:
        path = pipeline_record(label)
        if path.is_file() and label != record["label"]:
            past = json.loads(path.read_text(encoding="utf-8"))
            shown = ("status", "started", "seconds", "device", "git_commit", "git_dirty", "mlflow_run_id")
            found[label] = {key: past.get(key) for key in shown}
    return found
