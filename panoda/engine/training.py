"""What the training stages share: training as params say, saving results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from panoda.config import AugmentParams, ClassWeightParams, MethodParams, Section
from panoda.data.loading.loader import Augment, Batch, SampleSource, training_batches
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.transforms import JointTransform
from panoda.engine.loop import LoopState, run_loop
from panoda.engine.losses import class_weights
from panoda.engine.optim import build_optimizer, build_scheduler
from panoda.engine.task import Task
from panoda.inference.pictures import picture_indices, prediction_picture
from panoda.models.core.checkpoint import ModelCard, save_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.context import RunContext, check_shares
from panoda.system.files import write_json

PICTURES = 3


def source_weights(
    source: PreparedSplit | Mixture, params: ClassWeightParams, device: torch.device
) -> Tensor | None:
    """(K,) class weights of the source loss on ``device``, or None for none."""
    if params.kind == "none":
        return None
    pixels = torch.as_tensor(np.asarray(source.class_pixels))
    return class_weights(pixels, kind=params.kind, cap=params.cap).to(device)


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
    optimizer = build_optimizer(
        task.trained,
        name=optim.name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        betas=optim.betas,
        layer_decay=optim.layer_decay,
        head_lr_factor=optim.head_lr_factor,
    )
    scheduler = build_scheduler(
        optimizer,
        horizon=optim.horizon or params.iterations,
        warmup_iterations=optim.warmup_iterations,
        poly_power=optim.poly_power,
        schedule=optim.schedule,
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


def batches(
    split: SampleSource,
    *,
    batch_size: int,
    augment: AugmentParams,
    colour: bool,
    seed: int,
    num_steps: int,
    context: RunContext,
) -> Callable[[int], Iterator[Batch]]:
    """A function from start step to batches; ``colour=False`` leaves jitter and exposure to the step.

    Of several processes each gets its share of every batch.
    """
    keywords = augment.model_dump()
    if not colour:
        keywords.update(jitter=0.0, exposure=0.0)
    if not split.full_circle:
        keywords["yaw_roll"] = False
    return random_batches(
        split,
        JointTransform(**keywords),
        batch_size=batch_size,
        seed=seed,
        num_steps=num_steps,
        context=context,
    )


def random_batches(
    split: SampleSource,
    transform: Augment,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    context: RunContext,
) -> Callable[[int], Iterator[Batch]]:
    """A function from start step to batches; of several processes each gets its share of every batch."""
    check_shares(batch_size, context.world)

    def start(step: int) -> Iterator[Batch]:
        return training_batches(
            split,
            batch_size=batch_size,
            augment=transform,
            seed=seed,
            start_step=step,
            num_steps=num_steps - step,
            workers=context.workers,
            share=(context.rank, context.world),
            pin=context.device.type == "cuda",
        )

    return start


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
    history = pd.DataFrame(state.history or [{"step": 0.0}])
    history = history.groupby("step", as_index=False).first().astype({"step": int})
    history.to_csv(out / "history.csv", index=False, float_format="%.6g")
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


def section_dict(section: Section) -> dict[str, Any]:
    """A params section as plain JSON values, for the model card."""
    return section.model_dump(mode="json")
