"""Stage report: one self-contained page about everything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import RuntimeParams, TrackingParams
from panoda.pipeline.runs import pipeline_record
from panoda.pipeline.table import STAGES


@flow(name="report")
def report(
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage report: one self-contained page about everything.

    Args:
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run("report", job, runtime=runtime, tracking=tracking) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.report import report as stage

        return run.finish(
            stage(
                outputs=run.inputs["outputs"],
                params=run.record["params"],
                provenance=provenance(run.record),
                out=run.out,
            )
        )


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


if __name__ == "__main__":
    main(report)
