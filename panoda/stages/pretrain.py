"""Stage pretrain: training on the labelled sources by the method that the section names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panoda.config import ModelParams, SourceTrainingParams
from panoda.data.loading.mixture import Mixture, mean_colours, source_splits, training_source
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.averaging import WeightAverage
from panoda.engine.distributed import barrier, broadcast, result_directory
from panoda.engine.launch import on_devices
from panoda.engine.loop import LoopState
from panoda.engine.method import Setup, get_method
from panoda.engine.parallel import full_model, parallelise
from panoda.engine.seeds import stream_seed
from panoda.engine.training import prepared_size, run_training, save_training_result
from panoda.engine.validation import validate_split
from panoda.inference.metrics import ConfusionMatrix
from panoda.models.core.checkpoint import ModelCard, load_model, make_card, save_model
from panoda.models.core.segmenter import Segmenter
from panoda.models.weights.fitting import fit, load_fitted
from panoda.stages.weights import build_model, read_stage_weights
from panoda.system.context import RunContext
from panoda.system.errors import DataError

log = logging.getLogger("panoda")


@on_devices
def pretrain(
    *,
    source_train: Path,
    source_val: Path,
    out: Path,
    model: ModelParams,
    params: SourceTrainingParams,
    seed: int,
    context: RunContext,
    weights: Path | None = None,
    ssl_weights: Path | None = None,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Train a segmentation model on the source domain.

    Args:
        weights: Result of stage weights; None starts from random weights.
        ssl_weights: Folder encoder/ of stage ssl_pretrain's result; None where it had nothing to do.
        sources: Section sources: labelled source -> share of the training samples; None = source alone.

    Returns:
        ``miou/source_val`` and ``iou/source_val/<class>`` of the kept checkpoint, and the same for
        ``<role>_val`` of every further source. The checkpoint with the best mean of these mIoUs is kept.
        With averaged weights also ``swa/kept`` (1 if they are the result), ``swa/models``, how many they
        average, and ``swa/miou/...`` and ``swa/single_miou/...`` of them and of the best or last checkpoint.

    Raises:
        ValueError: a split without labels or with one class alone, or weights that do not fit the model.
        TrainingDiverged: a loss or gradient is not finite.
    """
    train = training_source(source_train, more_sources, sources)
    vals = {f"{role}_val": s for role, s in source_splits(source_val, more_sources, sources).items()}
    first = vals["source_val"]
    _check_labels(train, vals, say=context.main)
    space = train.space
    torch.manual_seed(stream_seed(seed, "model"))
    net = build_model(model, num_classes=space.num_classes)
    start = _load_weights(net, weights, model, space.name, space.names, ssl_folder=ssl_weights)
    net.colours = mean_colours(train)
    net.to(context.device)
    task = get_method(params.method).task(Setup("pretrain", net, params, seed, context, train))
    card = make_card(
        net,
        label_space=space,
        stage="pretrain",
        seed=seed,
        params={
            "model": model.model_dump(mode="json"),
            "pretrain": params.model_dump(mode="json"),
            "weights": start,
            "prepared": prepared_size(first),
        },
    )
    keeper = _Keeper(net, vals, params, card, context, out)
    parallelise(task, context)
    state = run_training(
        task,
        params,
        seed=stream_seed(seed, "pretrain"),
        context=context,
        description="pretrain",
        validate=keeper,
        validate_every=params.validate_every,
    )
    kept, metrics = keeper.result()
    with context.autocast():
        task.finish()
    if task.average is not None:
        kept, metrics = keeper.or_average(task.average, kept, metrics)
    with result_directory(out, context) as folder:
        values = save_training_result(
            folder, model=kept, card=card, state=state, metrics=metrics, split=first, context=context
        )
    # Only now: a full disk above must leave the weights for the next run. In a resume folder they stay as
    # long as the resume points do: a run that is killed right after this goes on from the last one.
    if context.main and context.state_dir is None:
        keeper.path.unlink(missing_ok=True)
    return values


def _check_labels(train: PreparedSplit | Mixture, vals: Mapping[str, PreparedSplit], *, say: bool) -> None:
    """Repeat what preprocess found suspicious; refuse a single class, whose mIoU of 1.0 says nothing."""
    parts = train.parts.values() if isinstance(train, Mixture) else [train]
    if say:
        for split in (*parts, *vals.values()):
            for doubt in split.doubts:
                log.warning("%s: %s", split.folder, doubt)
    if train.num_classes > 1 and np.count_nonzero(train.class_pixels) == 1:
        name = train.space.names[int(train.class_pixels.argmax())]
        folders = ", ".join(str(split.folder) for split in parts)
        raise DataError(
            f"{folders}: every labelled pixel is {name!r}, so there is nothing to learn (a model that always "
            "says so has mIoU 1.0); correct the label encoding (`panoda data check` shows the values) and "
            "preprocess again"
        )


def _load_weights(
    net: Segmenter,
    folder: Path | None,
    model: ModelParams,
    label_space: str,
    class_names: tuple[str, ...] | None = None,
    *,
    ssl_folder: Path | None = None,
) -> dict[str, Any] | None:
    """Load what stage weights found, or stage ssl_pretrain learned; where it is from and what is new."""
    given = None if folder is None else read_stage_weights(folder)
    if (given is None) != (model.weights is None):
        raise ValueError(
            f"model.weights is {model.weights!r}, but {folder or 'no input weights'} holds "
            f"{'none' if given is None else 'some'}; run stage weights with the same parameters first, and "
            "hand its result over (--input weights=FOLDER)"
        )
    given = given or (None if ssl_folder is None else read_stage_weights(ssl_folder))
    if given is None:
        return None
    tensors, card = given
    found = fit(net, tensors, card, label_space=label_space, class_names=class_names)
    load_fitted(net, found)
    for note in found.notes:
        log.warning("weights %s: %s", model.weights or card.source, note)
    return {"card": card.model_dump(mode="json"), **found.summary()}


class _Keeper:
    """Validates on val of every source and keeps the best (or last) weights beside the resume point."""

    def __init__(
        self,
        net: Segmenter,
        vals: dict[str, PreparedSplit],
        params: SourceTrainingParams,
        card: ModelCard,
        context: RunContext,
        out: Path,
    ) -> None:
        self.net, self.vals, self.params, self.card, self.context = net, vals, params, card, context
        folder = context.state_dir or out.parent
        self.path = folder / ("best.safetensors" if context.state_dir else f".{out.name}.best.safetensors")

    def __call__(self, state: LoopState) -> dict[str, float]:
        net = full_model(self.net, self.context)
        values = {f"miou/{name}": matrix.miou() for name, matrix in self._validate(net)}
        miou = sum(values.values()) / len(values)
        better = self.params.select == "last" or miou > state.best or not self.path.exists()
        if broadcast(better, self.context):
            state.best = miou
            if self.context.main:
                save_model(self.path, net, self.card)
            barrier(self.context)
        return values

    def result(self) -> tuple[Segmenter, dict[str, float]]:
        kept, _ = load_model(self.path, device=self.context.device)
        return kept, self._metrics(kept)

    def or_average(
        self, average: WeightAverage, single: Segmenter, metrics: dict[str, float]
    ) -> tuple[Segmenter, dict[str, float]]:
        """The averaged weights if they are better on source val (select: last takes them anyway)."""
        averaged = full_model(average.model, self.context)
        own = self._metrics(averaged)
        mious = [{k: v for k, v in values.items() if k.startswith("miou/")} for values in (own, metrics)]
        better = sum(mious[0].values()) > sum(mious[1].values())
        kept = better or self.params.select == "last"
        report = {"swa/kept": float(kept), "swa/models": float(average.count)}
        report |= {f"swa/{k}": v for k, v in mious[0].items()}
        report |= {f"swa/single_{k}": v for k, v in mious[1].items()}
        return (averaged, own | report) if kept else (single, metrics | report)

    def _metrics(self, net: Segmenter) -> dict[str, float]:
        metrics = {}
        for name, matrix in self._validate(net):
            metrics[f"miou/{name}"] = matrix.miou()
            iou = zip(self.card.class_names, matrix.iou(), strict=True)
            metrics |= {f"iou/{name}/{label}": float(v) for label, v in iou if v == v}
        return metrics

    def _validate(self, net: Segmenter) -> Iterator[tuple[str, ConfusionMatrix]]:
        for name, val in self.vals.items():
            yield name, validate_split(net, val, batch_size=self.params.batch_size, context=self.context)
