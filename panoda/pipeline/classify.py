"""A run of ``panoda classify``: data, resume folder, MLflow run and record around the work.

It is no stage: it judges encoders, of this project or not, and needs no params.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from panoda.classification.city_objects import city_objects
from panoda.classification.evaluate import evaluate
from panoda.classification.params import CITY, EvaluateParams, FinetuneParams, ProbeParams
from panoda.classification.training import judge
from panoda.config import RuntimeParams, TrackingParams
from panoda.pipeline import runs
from panoda.pipeline.apart import apart, listing
from panoda.system.files import check_replaceable, write_json

CODE = tuple(
    Path("panoda") / room for room in ("classification", "engine", "data", "models", "city", "system")
)


def classify(
    params: FinetuneParams | ProbeParams | EvaluateParams,
    *,
    out: Path | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    progress: bool = True,
) -> tuple[Path, dict[str, float]]:
    """Fine-tune, probe or evaluate; a killed run goes on when it is started again.

    Args:
        params: What to do; its kind says which of the three.
        out: Result folder; None makes runs/classify-ACTION-TIME-ID.
        runtime: Device, precision and the like; one process trains.
        tracking: Where MLflow logs, if it is installed; None = experiment classify.
        progress: Show progress bars.

    Returns:
        The result folder, and ``top1`` and ``top5``.

    Raises:
        ValueError: data, files or parameters that do not go together; nothing is written then.
        Preempted: SIGTERM or ctrl-C; the resume state is kept.
    """
    runtime, tracking = runtime or RuntimeParams(), tracking or TrackingParams(experiment="classify")
    name = f"classify-{params.action}"
    weights = Path(params.checkpoint if isinstance(params, EvaluateParams) else params.encoder)
    if out is not None:
        read = [Path(params.data)] if params.data != CITY else []
        read += [weights] if weights.exists() else []
        check_replaceable(out, made=[runs.RECORD], inputs=read)
    data = city_objects(progress=progress) if params.data == CITY else Path(params.data)
    inputs = {"data": listing(data), "weights": runs.digest(weights) if weights.is_file() else ""}
    asked = params.model_dump(mode="json")
    options: dict[str, Any] = {"runtime": runtime, "tracking": tracking, "progress": progress}
    with apart(name, asked, inputs, code=CODE, **options) as context:
        place = out or runs.new_run_folder(name)
        if isinstance(params, EvaluateParams):
            metrics = evaluate(data, place, params, context=context)
        else:
            metrics = judge(data, place, params, context=context)
        context.logger.log_metrics(metrics, 0)
        write_json(
            place / runs.RECORD, {"action": name, "params": asked, "inputs": inputs, **runs.provenance()}
        )
    return place, metrics
