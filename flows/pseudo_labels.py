"""Stage pseudo_labels: label the target's training images with the warmed-up model."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import PseudoLabelParams, RuntimeParams, TrackingParams


@flow(name="pseudo-labels")
def pseudo_labels(
    pseudo_labels: PseudoLabelParams | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage pseudo_labels: label the target's training images with the warmed-up model.

    Args:
        pseudo_labels: Section pseudo_labels; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "pseudo_labels", job, pseudo_labels=pseudo_labels, runtime=runtime, tracking=tracking
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.pseudo_labels import pseudo_labels as stage

        return run.finish(
            stage(
                **run.inputs,
                out=run.out,
                params=run.params.pseudo_labels,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(pseudo_labels)
