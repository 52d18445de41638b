"""Stage warmup: adversarial output alignment of both domains."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import RuntimeParams, SourceWeights, TrackingParams, WarmupParams


@flow(name="warmup")
def warmup(
    sources: SourceWeights | None = None,
    warmup: WarmupParams | None = None,
    seed: int | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage warmup: adversarial output alignment of both domains.

    Args:
        sources: Section sources; null takes the params file's.
        warmup: Section warmup; null takes the params file's.
        seed: Section seed; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "warmup", job, sources=sources, warmup=warmup, seed=seed, runtime=runtime, tracking=tracking
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.warmup import warmup as stage

        return run.finish(
            stage(
                **run.inputs,
                sources=run.params.sources,
                out=run.out,
                params=run.params.warmup,
                seed=run.params.seed,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(warmup)
