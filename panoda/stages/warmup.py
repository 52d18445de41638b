"""Stage warmup: adversarial output alignment of source and target; 0 iterations pass the model through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from panoda.adaptation.adversarial import Adversary
from panoda.config import WarmupParams
from panoda.data.mixture import Mixture, training_source
from panoda.data.prepared import PreparedSplit
from panoda.labels import get_label_space
from panoda.models.checkpoint import load_model, make_card
from panoda.models.discriminator import Discriminator
from panoda.models.segmenter import Segmenter
from panoda.stages.common import (
    batches,
    prepared_size,
    run_training,
    save_training_result,
    section_dict,
    source_weights,
)
from panoda.training.alignment import AlignmentTask
from panoda.training.context import RunContext
from panoda.training.distributed import result_directory
from panoda.training.launch import on_devices
from panoda.training.loop import LoopState
from panoda.training.parallel import full_model, parallelise
from panoda.training.seeds import stream_seed


@on_devices
def warmup(
    *,
    checkpoint: Path,
    source_train: Path,
    target_train: Path,
    out: Path,
    params: WarmupParams,
    seed: int,
    context: RunContext,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Align target outputs with source outputs before self-training.

    Args:
        checkpoint: Source model.
        source_train: Prepared, labelled split.
        target_train: Prepared split; its labels, if any, are never read.
        out: Result folder (replaced).
        params: The warmup section.
        seed: Run seed.
        context: Device, precision, logger, resume folder.
        more_sources: Folder of further prepared sources, one per role; read when ``sources`` names any.
        sources: Section sources: labelled source -> share of the training samples; None = source alone.

    Returns:
        The last step's losses. The last weights are kept: no target label could select others.
    """
    source, target = training_source(source_train, more_sources, sources), PreparedSplit(target_train)
    space = get_label_space(source.label_space)
    net, old = load_model(checkpoint, num_classes=space.num_classes, device=context.device)
    state = LoopState()
    if params.iterations:
        state = _align(net, source, target, params, seed, context)
        net = full_model(net, context)
    card = make_card(
        net,
        label_space=space.name,
        stage="warmup",
        seed=seed,
        params={**old.params, "warmup": section_dict(params), "prepared": prepared_size(target)},
    )
    metrics = {k: v for k, v in (state.history[-1] if state.history else {}).items() if k.startswith("loss/")}
    with result_directory(out, context) as folder:
        return save_training_result(
            folder, model=net, card=card, state=state, metrics=metrics, split=target, context=context
        )


def _align(
    net: Segmenter,
    source: PreparedSplit | Mixture,
    target: PreparedSplit,
    params: WarmupParams,
    seed: int,
    context: RunContext,
) -> LoopState:
    torch.manual_seed(stream_seed(seed, "warmup"))
    num_classes = get_label_space(source.label_space).num_classes
    discriminator = Discriminator(num_classes).to(context.device)
    common: dict[str, Any] = {
        "batch_size": params.batch_size,
        "colour": True,
        "num_steps": params.iterations,
        "context": context,
    }
    task = AlignmentTask(
        net,
        Adversary(discriminator, lr=params.discriminator_lr),
        batches(source, augment=params.augment_source, seed=stream_seed(seed, "warmup source"), **common),
        batches(target, augment=params.augment_target, seed=stream_seed(seed, "warmup target"), **common),
        weight=source_weights(source, params.class_weights, context.device),
        adversarial_weight=params.adversarial_weight,
        colour_transfer=params.colour_transfer,
        device=context.device,
    )
    parallelise(net, context)
    return run_training(
        task, params, seed=stream_seed(seed, "warmup"), context=context, description="warm-up"
    )
