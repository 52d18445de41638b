"""Stage pretrain: supervised training on the source domain."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import ModelParams, PretrainParams, RuntimeParams, SourceWeights, TrackingParams


@flow(name="pretrain")
def pretrain(
    sources: SourceWeights | None = None,
    model: ModelParams | None = None,
    pretrain: PretrainParams | None = None,
    seed: int | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage pretrain: supervised training on the source domain.

    Args:
        sources: Section sources; null takes the params file's.
        model: Section model; null takes the params file's.
        pretrain: Section pretrain; null takes the params file's.
        seed: Section seed; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "pretrain",
        job,
        sources=sources,
        model=model,
        pretrain=pretrain,
        seed=seed,
        runtime=runtime,
        tracking=tracking,
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.pretrain import pretrain as stage

        return run.finish(
            stage(
                **run.inputs,
                sources=run.params.sources,
                out=run.out,
                model=run.params.model,
                params=run.params.pretrain,
                seed=run.params.seed,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(pretrain)
