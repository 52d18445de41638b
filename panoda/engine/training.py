"""What the training stages share: training as params say, training a given model further, saving results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from panoda.config import MethodParams
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.distributed import result_directory
from panoda.engine.loop import LoopState, run_loop
from panoda.engine.method import Setup, get_method
from panoda.engine.optim import build_optimizer, build_scheduler
from panoda.engine.parallel import full_model, parallelise
from panoda.engine.seeds import stream_seed
from panoda.engine.task import Task
from panoda.inference.pictures import picture_indices, prediction_picture
from panoda.models.core.checkpoint import ModelCard, load_model, make_card, save_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.context import RunContext
from panoda.system.files import write_json

PICTURES = 3


def train_further(
    checkpoint: Path,
    *,
    stage: str,
    source: PreparedSplit | Mixture | None,
    target: PreparedSplit,
    out: Path,
    params: MethodParams,
    seed: int,
    context: RunContext,
    pseudo_labels: Path | None = None,
    prototypes: Path | None = None,
) -> dict[str, float]:
    """Train the model in ``checkpoint`` with ``params.method`` and write ``out``; 0 iterations pass it through.

    The last weights are kept: no target label could select others.

    Args:
        checkpoint: The model to start from.
        stage: Name of the stage, for random streams, messages and the model's card.
        source: Labelled samples; None for methods that do without.
        target: Samples whose labels, if any, are never read.
        out: Result folder (replaced): model.safetensors, history.csv, metrics.json, and what the method saves.
        pseudo_labels: Folder of that stage, for methods that need it; ``prototypes`` likewise.

    Returns:
        The last step's losses and the method's own metrics.
    """
    space = (source or target).space
    model, old = load_model(checkpoint, space=space, device=context.device)
    state, task, own = LoopState(), None, stream_seed(seed, stage)
    if params.iterations:
        torch.manual_seed(own)
        task = get_method(params.method).task(
            Setup(stage, model, params, seed, context, source, target, pseudo_labels, prototypes)
        )
        parallelise(task, context)
        state = run_training(task, params, seed=own, context=context, description=stage)
        model = full_model(task.result(), context)
    card = make_card(
        model,
        label_space=space,
        stage=stage,
        seed=seed,
        params={**old.params, stage: params.model_dump(mode="json"), "prepared": prepared_size(target)},
    )
    last = next((row for row in reversed(state.history) if "loss/total" in row), {})
    metrics = {name: value for name, value in last.items() if name.startswith(("loss/", "teacher/"))}
    with result_directory(out, context) as folder:
        if task is not None:
            metrics |= task.metrics()
            if context.main:
                task.save(folder)
        return save_training_result(
            folder, model=model, card=card, state=state, metrics=metrics, split=target, context=context
        )


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
