"""What the training stages share: training as params say, saving results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from panoda.config import MethodParams
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.loop import LoopState, run_loop
from panoda.engine.optim import build_optimizer, build_scheduler
from panoda.engine.task import Task
from panoda.inference.pictures import picture_indices, prediction_picture
from panoda.models.core.checkpoint import ModelCard, save_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.context import RunContext
from panoda.system.files import write_json

PICTURES = 3


def run_training(
    task: Task,
    params: MethodParams,
    *,
    seed: int,
    context: RunContext,
    description: str,
    validate: Callable[[LoopState], dict[str, float]] | None = None,
    validate_every: int = 0,
) -> LoopState:
    """Train ``task.trained`` for all iterations of a stage, in train mode; evaluation mode after."""
    optim, constant = params.optim, task.constant_rate
    schedule = {"warmup_iterations", "poly_power", "schedule"}
    own = optim.model_dump(exclude=schedule | {"horizon", "clip_norm"})
    optimizer = build_optimizer(task.trained, **own)
    scheduler = build_scheduler(
        optimizer,
        **optim.model_dump(include=schedule),
        horizon=optim.horizon or params.iterations,
        constant=None if constant is None else (constant[0], constant[1] / optim.lr),
    )
    task.trained.train()
    try:
        return run_loop(
            task,
            optimizer=optimizer,
            scheduler=scheduler,
            num_steps=params.iterations,
            seed=seed,
            clip_norm=optim.clip_norm,
            accumulate=params.accumulate,
            context=context,
            description=description,
            validate=validate,
            validate_every=validate_every,
        )
    finally:
        task.trained.eval()


def save_training_result(
    out: Path,
    *,
    model: Segmenter,
    card: ModelCard,
    state: LoopState,
    metrics: Mapping[str, float],
    split: PreparedSplit,
    context: RunContext,
) -> dict[str, float]:
    """Write model, history.csv, loss_spikes.csv, metrics.json and pictures into ``out``; one process does."""
    values = {k: float(v) for k, v in metrics.items()}
    if not context.main:
        return values
    save_model(out / "model.safetensors", model, card)
    save_history(out, state, values, context)
    (out / "pictures").mkdir(exist_ok=True)
    for number, index in enumerate(picture_indices(len(split), PICTURES)):
        picture = prediction_picture(model, split, index, context)
        Image.fromarray(picture).save(out / "pictures" / f"{number}.png")
        context.logger.log_image(f"pictures/{number}", picture, state.step)
    return values


def save_history(out: Path, state: LoopState, metrics: Mapping[str, float], context: RunContext) -> None:
    """Write history.csv, loss_spikes.csv and metrics.json into ``out``, and log the metrics."""
    state.write_history(out / "history.csv")
    state.spikes.write(out / "loss_spikes.csv")
    write_json(out / "metrics.json", dict(metrics))
    if metrics:
        context.logger.log_metrics(metrics, state.step)


def prepared_size(split: PreparedSplit) -> dict[str, Any]:
    """Size and geometry of the images a model was made for; ``panoda predict`` goes by them."""
    return {
        "height": split.height,
        "width": split.width,
        "full_circle": split.full_circle,
        "projection": split.projection,
        "fov_x_deg": split.fov_x_deg,
    }
