"""Stage preprocess: raw files of one domain to index and shards."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import DataParams, RuntimeParams, TrackingParams


@flow(name="preprocess")
def preprocess(
    role: str,
    data: DataParams | None = None,
    label_space: str | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage preprocess: raw files of one domain to index and shards.

    Args:
        role: Which domain of section data: source, target, or a further source.
        data: Section data; null takes the params file's.
        label_space: Section label_space; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "preprocess", job, role=role, data=data, label_space=label_space, runtime=runtime, tracking=tracking
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.preprocess import preprocess as stage

        if job.pipeline:
            # An input of every training stage, empty as a rule: DVC wants the folder to exist.
            Path("data/prepared/more_sources").mkdir(parents=True, exist_ok=True)
        return run.finish(
            stage(
                role=role,
                raw=run.inputs["raw"],
                out=run.out,
                domain=run.params.data.domains[role],
                label_space=run.params.label_space,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(preprocess)
