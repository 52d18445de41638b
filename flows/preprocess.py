"""Stage preprocess: raw files of one domain to index and shards."""

from __future__ import annotations

from typing import Literal

from prefect import flow

from flows.command import main
from flows.execution import HERE, Job, stage_run
from panoda.config import DataParams, RuntimeParams, TrackingParams

Role = Literal["source", "target"]


@flow(name="preprocess")
def preprocess(
    role: Role,
    data: DataParams | None = None,
    label_space: str | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage preprocess: raw files of one domain to index and shards.

    Args:
        role: Which domain.
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

        return run.finish(
            stage(
                role=role,
                raw=run.inputs["raw"],
                out=run.out,
                domain=getattr(run.params.data, role),
                label_space=run.params.label_space,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(preprocess)
