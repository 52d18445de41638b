"""Stage adapt: self-training with mutual prototypical adaptation."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import AdaptParams, RuntimeParams, SourceWeights, TrackingParams


@flow(name="adapt")
def adapt(
    sources: SourceWeights | None = None,
    adapt: AdaptParams | None = None,
    seed: int | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage adapt: self-training with mutual prototypical adaptation.

    Args:
        sources: Section sources; null takes the params file's.
        adapt: Section adapt; null takes the params file's.
        seed: Section seed; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "adapt", job, sources=sources, adapt=adapt, seed=seed, runtime=runtime, tracking=tracking
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.adapt import adapt as stage

        return run.finish(
            stage(
                **run.inputs,
                sources=run.params.sources,
                out=run.out,
                params=run.params.adapt,
                seed=run.params.seed,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(adapt)
