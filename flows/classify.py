"""Flow classify: ``panoda classify`` as a deployment. It is no stage: it needs no params.yaml."""

from contextlib import ExitStack
from pathlib import Path

from prefect import flow

from flows.devices import hold_gpus
from panoda.classification.params import ClassifyParams
from panoda.config import RuntimeParams, TrackingParams
from panoda.pipeline import classify as work


@flow(name="classify")
def classify(
    params: ClassifyParams,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    out: str | None = None,
) -> dict[str, float]:
    """Fine-tune, probe or evaluate a classifier.

    Args:
        params: What to do (``action``: finetune, probe or evaluate) and how; `panoda classify finetune city --show`.
        runtime: Where and how to compute.
        tracking: Where MLflow logs; null = experiment classify.
        out: Result folder; null makes runs/classify-ACTION-TIME-ID.
    """
    from panoda.system.context import resolve_device

    runtime = runtime or RuntimeParams()
    with ExitStack() as stack:
        hold_gpus([resolve_device(runtime.device)], stack)
        place = None if out is None else Path(out)
        _, metrics = work.classify(params, out=place, runtime=runtime, tracking=tracking)
    return metrics
