"""Stage prototypes: mean features per class of both domains."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import PrototypeParams, RuntimeParams, SourceWeights, TrackingParams


@flow(name="prototypes")
def prototypes(
    sources: SourceWeights | None = None,
    prototypes: PrototypeParams | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage prototypes: mean features per class of both domains.

    Args:
        sources: Section sources; null takes the params file's.
        prototypes: Section prototypes; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "prototypes", job, sources=sources, prototypes=prototypes, runtime=runtime, tracking=tracking
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.prototypes import prototypes as stage

        return run.finish(
            stage(
                **run.inputs,
                sources=run.params.sources,
                out=run.out,
                params=run.params.prototypes,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(prototypes)
