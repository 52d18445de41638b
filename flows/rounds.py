"""Stage rounds: further rounds of pseudo-labels, prototypes and adaptation."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import (
    AdaptParams,
    PrototypeParams,
    PseudoLabelParams,
    RuntimeParams,
    SourceWeights,
    TrackingParams,
)


@flow(name="rounds")
def rounds(
    sources: SourceWeights | None = None,
    rounds: int | None = None,
    pseudo_labels: PseudoLabelParams | None = None,
    prototypes: PrototypeParams | None = None,
    adapt: AdaptParams | None = None,
    seed: int | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage rounds: further rounds of pseudo-labels, prototypes and adaptation.

    Args:
        sources: Section sources; null takes the params file's.
        rounds: Section rounds; null takes the params file's.
        pseudo_labels: Section pseudo_labels; null takes the params file's.
        prototypes: Section prototypes; null takes the params file's.
        adapt: Section adapt; null takes the params file's.
        seed: Section seed; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "rounds",
        job,
        sources=sources,
        rounds=rounds,
        pseudo_labels=pseudo_labels,
        prototypes=prototypes,
        adapt=adapt,
        seed=seed,
        runtime=runtime,
        tracking=tracking,
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.rounds import rounds as stage

        return run.finish(
            stage(
                **run.inputs,
                sources=run.params.sources,
                out=run.out,
                rounds=run.params.rounds,
                pseudo_labels=run.params.pseudo_labels,
                prototypes=run.params.prototypes,
                adapt=run.params.adapt,
                seed=run.params.seed,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(rounds)
