"""Stage pretrain: supervised training on the labelled sources."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from panoda.config import ModelParams, PretrainParams
from panoda.data.mixture import source_splits, training_source
from panoda.data.prepared import PreparedSplit
from panoda.files import staged_directory
from panoda.labels import get_label_space
from panoda.metrics import ConfusionMatrix
from panoda.models.checkpoint import ModelCard, load_model, make_card, save_model
from panoda.models.fitting import fit, load_fitted
from panoda.models.segmenter import Segmenter
from panoda.stages.common import (
    batches,
    optimisation,
    prepared_size,
    save_training_result,
    section_dict,
    source_weights,
    training_mode,
)
from panoda.stages.weights import build_model, read_stage_weights
from panoda.training.context import RunContext
from panoda.training.loop import LoopState, run_loop
from panoda.training.seeds import stream_seed
from panoda.training.supervised import SupervisedTask
from panoda.training.validation import validate_split

log = logging.getLogger("panoda")


def pretrain(
    *,
    source_train: Path,
    source_val: Path,
    out: Path,
    model: ModelParams,
    params: PretrainParams,
    seed: int,
    context: RunContext,
    weights: Path | None = None,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Train a segmentation model on the source domain.

    Args:
        source_train: Prepared, labelled split.
        source_val: Prepared, labelled split for validation and checkpoint selection.
        out: Result folder (replaced).
        model: The model section.
        params: The pretrain section.
        seed: Run seed.
        context: Device, precision, logger, resume folder.
        weights: Result of stage weights; None starts from random weights.
        more_sources: Folder of further prepared sources, one per role; read when ``sources`` names any.
        sources: Section sources: labelled source -> share of the training samples; None = source alone.

    Returns:
        ``miou/source_val`` and ``iou/source_val/<class>`` of the kept checkpoint, and the same for
        ``<role>_val`` of every further source. The checkpoint with the best mean of these mIoUs is kept.

    Raises:
        ValueError: a split without labels, or weights that do not fit the model.
        TrainingDiverged: a loss or gradient is not finite.
    """
    train = training_source(source_train, more_sources, sources)
    vals = {f"{role}_val": s for role, s in source_splits(source_val, more_sources, sources).items()}
    first = vals["source_val"]
    space = get_label_space(train.label_space)
    torch.manual_seed(stream_seed(seed, "model"))
    net = build_model(model, num_classes=space.num_classes)
    start = _load_weights(net, weights, model, space.name)
    net.to(context.device)
    task = SupervisedTask(
        net,
        batches(
            train,
            batch_size=params.batch_size,
            augment=params.augment,
            colour=True,
            seed=stream_seed(seed, "pretrain source"),
            num_steps=params.iterations,
            workers=context.workers,
        ),
        weight=source_weights(train, params.class_weights, context.device),
        ohem=(params.ohem.threshold, params.ohem.min_kept) if params.ohem else None,
        device=context.device,
        label_smoothing=params.label_smoothing,
    )
    card = make_card(
        net,
        label_space=space.name,
        stage="pretrain",
        seed=seed,
        params={
            "model": section_dict(model),
            "pretrain": section_dict(params),
            "weights": start,
            "prepared": prepared_size(first),
        },
    )
    keeper = _Keeper(net, vals, params, card, context, out)
    optimizer, scheduler = optimisation(net, params.optim, params.iterations)
    with training_mode(net):
        state = run_loop(
            task,
            optimizer=optimizer,
            scheduler=scheduler,
            num_steps=params.iterations,
            seed=stream_seed(seed, "pretrain"),
            clip_norm=params.optim.clip_norm,
            checkpoint_every=params.checkpoint_every,
            log_every=params.log_every,
            context=context,
            description="pretrain",
            validate=keeper,
            validate_every=params.validate_every,
        )
    kept, metrics = keeper.result()
    with staged_directory(out) as folder:
        values = save_training_result(
            folder, model=kept, card=card, state=state, metrics=metrics, split=first, context=context
        )
    # Only now: a full disk above must leave the weights for the next run.
    keeper.path.unlink(missing_ok=True)
    return values


def _load_weights(
    net: Segmenter, folder: Path | None, model: ModelParams, label_space: str
) -> dict[str, Any] | None:
    """Load what stage weights found; returns where it is from and what is new, for the model's card."""
    given = None if folder is None else read_stage_weights(folder)
    if (given is None) != (model.weights is None):
        raise ValueError(
            f"model.weights is {model.weights!r}, but {folder or 'no input weights'} holds "
            f"{'none' if given is None else 'some'}; run stage weights with the same parameters first, and "
            "hand its result over (--input weights=FOLDER)"
        )
    if given is None:
        return None
    tensors, card = given
    found = fit(net, tensors, card, label_space=label_space)
    load_fitted(net, found)
    for note in found.notes:
        log.warning("weights %s: %s", model.weights, note)
    return {"card": card.model_dump(mode="json"), **found.summary()}


class _Keeper:
    """Validates on val of every source and keeps the best (or last) weights beside the resume point."""

    def __init__(
        self,
        net: Segmenter,
        vals: dict[str, PreparedSplit],
        params: PretrainParams,
        card: ModelCard,
        context: RunContext,
        out: Path,
    ) -> None:
        self.net, self.vals, self.params, self.card, self.context = net, vals, params, card, context
        folder = context.state_dir or out.parent
        self.path = folder / ("best.safetensors" if context.state_dir else f".{out.name}.best.safetensors")

    def __call__(self, state: LoopState) -> dict[str, float]:
        values = {f"miou/{name}": float(m.miou()) for name, m in self._validate(self.net).items()}
        miou = sum(values.values()) / len(values)
        if self.params.select == "last" or miou > state.best or not self.path.exists():
            state.best = miou
            save_model(self.path, self.net, self.card)
        return values

    def result(self) -> tuple[Segmenter, dict[str, float]]:
        kept, _ = load_model(self.path, device=self.context.device)
        names = get_label_space(self.card.label_space).names
        metrics = {}
        for name, matrix in self._validate(kept).items():
            metrics[f"miou/{name}"] = float(matrix.miou())
            iou = zip(names, matrix.iou(), strict=True)
            metrics |= {f"iou/{name}/{label}": float(v) for label, v in iou if v == v}
        return kept, metrics

    def _validate(self, net: Segmenter) -> dict[str, ConfusionMatrix]:
        size = self.params.batch_size
        return {
            name: validate_split(net, val, batch_size=size, context=self.context)
            for name, val in self.vals.items()
        }
