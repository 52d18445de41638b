"""What the training stages share: building optimisers from params, saving results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from panoda.config import AugmentParams, ClassWeightParams, OptimParams, Section
from panoda.data.loader import Batch, SampleSource, training_batches
from panoda.data.mixture import Mixture
from panoda.data.prepared import PreparedSplit
from panoda.data.transforms import JointTransform
from panoda.files import write_json
from panoda.losses import class_weights
from panoda.models.checkpoint import ModelCard, save_model
from panoda.models.segmenter import Segmenter
from panoda.training.context import RunContext, check_shares
from panoda.training.loop import LoopState
from panoda.training.optim import build_optimizer, build_scheduler
from panoda.training.validation import picture_indices, prediction_picture

PICTURES = 3


def source_weights(
    source: PreparedSplit | Mixture, params: ClassWeightParams, device: torch.device
) -> Tensor | None:
    """(K,) class weights of the source loss on ``device``, or None for none."""
    if params.kind == "none":
        return None
    pixels = torch.as_tensor(np.asarray(source.class_pixels))
    return class_weights(pixels, kind=params.kind, cap=params.cap).to(device)


def optimisation(
    model: nn.Module, params: OptimParams, iterations: int, *, constant: tuple[int, float] | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimiser and schedule of a stage; ``constant`` = (step, learning rate) from that step on."""
    optimizer = build_optimizer(
        model,
        name=params.name,
        lr=params.lr,
        weight_decay=params.weight_decay,
        momentum=params.momentum,
        layer_decay=params.layer_decay,
        head_lr_factor=params.head_lr_factor,
    )
    scheduler = build_scheduler(
        optimizer,
        horizon=params.horizon or iterations,
        warmup_iterations=params.warmup_iterations,
        poly_power=params.poly_power,
        constant=None if constant is None else (constant[0], constant[1] / params.lr),
    )
    return optimizer, scheduler


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
    check_shares(batch_size, context.world)
    keywords = augment.model_dump()
    if not colour:
        keywords.update(jitter=0.0, exposure=0.0)
    if not split.full_circle:
        keywords["yaw_roll"] = False
    transform = JointTransform(**keywords)

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
    history = pd.DataFrame(state.history or [{"step": 0.0}])
    history = history.groupby("step", as_index=False).first().astype({"step": int})
    history.to_csv(out / "history.csv", index=False, float_format="%.6g")
    state.spikes.write(out / "loss_spikes.csv")
    write_json(out / "metrics.json", values)
    (out / "pictures").mkdir(exist_ok=True)
    for number, index in enumerate(picture_indices(len(split), PICTURES)):
        picture = prediction_picture(model, split, index, context)
        Image.fromarray(picture).save(out / "pictures" / f"{number}.png")
        context.logger.log_image(f"pictures/{number}", picture, state.step)
    if values:
        context.logger.log_metrics(values, state.step)
    return values


def prepared_size(split: PreparedSplit) -> dict[str, Any]:
    """Size and shape of the images a model was made for; ``panoda predict`` works at this height."""
    return {"height": split.height, "width": split.width, "full_circle": split.full_circle}


def section_dict(section: Section) -> dict[str, Any]:
    """A params section as plain JSON values, for the model card."""
    return section.model_dump(mode="json")


@contextlib.contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Train mode inside, evaluation mode after."""
    model.train()
    try:
        yield
    finally:
        model.eval()
