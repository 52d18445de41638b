"""Stage evaluate: every model on source val and target test."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from panoda.config import EvaluateParams, RuntimeParams, SourceWeights, TrackingParams


@flow(name="evaluate")
def evaluate(
    sources: SourceWeights | None = None,
    evaluate: EvaluateParams | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage evaluate: every model on source val and target test.

    Args:
        sources: Section sources; null takes the params file's.
        evaluate: Section evaluate; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run(
        "evaluate", job, sources=sources, evaluate=evaluate, runtime=runtime, tracking=tracking
    ) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.evaluate import evaluate as stage

        inputs = run.inputs
        models = {name: inputs[name] for name in ("source_only", "warmup", "round1")}
        later = sorted(
            inputs["rounds"].glob("round*"), key=lambda folder: int(folder.name.removeprefix("round"))
        )
        models |= {folder.name: folder / "adapt" / "model.safetensors" for folder in later}
        return run.finish(
            stage(
                models=models,
                source_val=inputs["source_val"],
                target_test=inputs["target_test"],
                more_sources=inputs.get("more_sources"),
                sources=run.params.sources,
                out=run.out,
                params=run.params.evaluate,
                context=run.context,
            )
        )


if __name__ == "__main__":
    main(evaluate)
