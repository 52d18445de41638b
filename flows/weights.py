"""Stage weights: pretrained weights as the model will load them."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import ModelParams, RuntimeParams, TrackingParams


@flow(name="weights")
def weights(
    model: ModelParams | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage weights: pretrained weights as the model will load them.

    Args:
        model: Section model; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run("weights", job, model=model, runtime=runtime, tracking=tracking) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.weights import weights as stage

        return run.finish(stage(**run.inputs, out=run.out, model=run.params.model, context=run.context))


if __name__ == "__main__":
    main(weights)
