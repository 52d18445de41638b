"""Stage pseudo_labels: label the target train split with a model, in constant memory and in pieces.

First predict and store label and confidence of every image, counting a histogram per class; then apply each
class's threshold. On demand the first pass sums features for stage prototypes as well, which then need not
pass over the target again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from panoda.config import PseudoLabelParams
from panoda.data.loading.prepared import PreparedSplit, Sample
from panoda.data.loading.pseudo import (
    PROTOTYPE_SUMS,
    PseudoLabelSplit,
    PseudoLabelWriter,
    join_pieces,
    stored_labels,
)
from panoda.geometry.views import Views
from panoda.inference.pictures import picture_indices
from panoda.inference.prediction import mix_views, predict_features, predict_logits
from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.prototype_sums import PrototypeSums
from panoda.methods.parts.thresholds import ClassThresholds, ConfidenceHistogram, quantise
from panoda.models.core.checkpoint import load_model
from panoda.models.core.colours import in_source_colours
from panoda.models.core.segmenter import Segmenter
from panoda.system.background import BackgroundWriter, read_ahead
from panoda.system.context import RunContext
from panoda.system.files import sha256_file, staged_directory, write_json
from panoda.system.pieces import Work, finish, piece_folder, recipe, spans, work_folder

PICTURES = 4
COUNTS = "counts.safetensors"


def pseudo_labels(
    *, checkpoint: Path, target_train: Path, out: Path, params: PseudoLabelParams, context: RunContext
) -> dict[str, float]:
    """Predict, threshold and store pseudo-labels.

    Args:
        target_train: Prepared target split; its labels, if any, are never read.
        out: Result folder (replaced): label and confidence shards, classes.csv, metrics.json, pictures, and
            with ``prototype_sums`` what stage prototypes needs of the target.

    Returns:
        ``kept_share`` and ``classes_predicted``; shares by class are logged and in classes.csv.
    """
    split = PreparedSplit(target_train)
    load_model(checkpoint, num_classes=split.num_classes, device="cpu")  # refuses a wrong one here and now
    with work_folder(context, out) as place:
        digests = (sha256_file(checkpoint), split.digest)
        label = LabelWork(
            checkpoint.absolute(), target_train.absolute(), params, len(split), digests, context.piece_size
        )
        labelled = finish(label, place, context)
        limits = class_limits(labelled, params, split.num_classes)
        threshold = ThresholdWork(label, (place / label.name).absolute(), limits, split.shard_images)
        kept = finish(threshold, place, context)
        with staged_directory(out) as folder:
            join_pieces(kept, folder, split)
            if params.prototype_sums:
                _write_sums(folder, labelled, limits, label)
            return _describe(folder, split, limits, context)


@dataclass(frozen=True)
class LabelWork(Work):
    """Label and confidence of every image, before any threshold.

    A piece holds a folder of ``PseudoLabelWriter`` and counts.safetensors: ``histogram`` (K, 256) and, with
    ``prototype_sums``, ``total`` and ``images`` of ``PrototypeSums``.

    Attributes:
        digests: SHA-256 of the checkpoint, digest of the split.
    """

    name = "pseudo-labels"
    checkpoint: Path
    target_train: Path
    params: PseudoLabelParams
    images: int
    digests: tuple[str, str]
    piece_size: int

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of a piece."""
        params = self.params.model_dump(mode="json")
        return {"digests": self.digests, "params": params, "piece_size": self.piece_size}

    @property
    def spans(self) -> list[range]:
        """The images of every piece."""
        return spans(self.images, self.piece_size)

    def __len__(self) -> int:
        return len(self.spans)

    def open(self, compute: RunContext) -> Callable[[int, Path], None]:
        """Load the model and the index."""
        split = PreparedSplit(self.target_train)
        model, _ = load_model(self.checkpoint, num_classes=split.num_classes, device=compute.device)
        return partial(self._make, model, split, compute)

    @torch.no_grad()
    def _make(
        self, model: Segmenter, split: PreparedSplit, compute: RunContext, number: int, folder: Path
    ) -> None:
        span, params = self.spans[number], self.params
        histogram = ConfidenceHistogram(split.num_classes)
        sums: PrototypeSums | None = None
        if params.prototype_sums:
            sums = PrototypeSums(
                split.num_classes, model.feature_channels, cap=params.cap, device=compute.device
            )

        def keep(samples: Sequence[Sample], label: Tensor, level: Tensor) -> None:
            for sample, one, confidence in zip(samples, label.cpu(), level.cpu(), strict=True):
                histogram.update(one, confidence)
                writer.add(sample["id"], one, confidence)

        with (
            PseudoLabelWriter(folder, split, shard_images=len(span), images=span, first=number) as writer,
            BackgroundWriter() as background,
        ):
            for samples in read_ahead([split[i] for i in part] for part in compute.batches(span)):
                label, level = _predict(model, samples, params, compute, split, sums)
                background.submit(keep, samples, label, level)
        tensors = {"histogram": histogram.counts}
        if sums is not None:
            tensors |= {"total": sums.total.cpu(), "images": sums.images.cpu()}
        (folder / COUNTS).write_bytes(save(tensors))


@dataclass(frozen=True)
class ThresholdWork(Work):
    """The labels of ``LabelWork`` with 255 below the threshold of their class.

    Attributes:
        shard_images: Images per shard of the result, as in the prepared split; a piece holds whole shards.
    """

    name = "thresholds"
    labelled: LabelWork
    folder: Path
    limits: ClassThresholds
    shard_images: int

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of a piece."""
        return {"labelled": recipe(self.labelled), "level": self.limits.level.tolist()}

    @property
    def spans(self) -> list[range]:
        """The images of every piece."""
        shards = max(1, self.labelled.piece_size // self.shard_images)
        return spans(self.labelled.images, shards * self.shard_images)

    def __len__(self) -> int:
        return len(self.spans)

    def open(self, compute: RunContext) -> Callable[[int, Path], None]:
        """Read the index."""
        split = PreparedSplit(self.labelled.target_train)

        def make(number: int, folder: Path) -> None:
            span, size = self.spans[number], self.shard_images
            first = span.start // size
            writer = PseudoLabelWriter(folder, split, shard_images=size, images=span, first=first)
            with writer, BackgroundWriter() as background:
                for name, label, level in read_ahead(self._stored(split, span)):
                    kept = self.limits.apply(torch.from_numpy(label), torch.from_numpy(level))
                    background.submit(writer.add, name, kept, level)

        return make

    def _stored(self, split: PreparedSplit, images: range) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Id, label and confidence of a stretch of the images, from the pieces that hold it."""
        size = self.labelled.piece_size
        for number in range(images.start // size, (images.stop - 1) // size + 1):
            start, stop = max(0, images.start - number * size), min(size, images.stop - number * size)
            yield from stored_labels(piece_folder(self.folder, number), split, range(start, stop))


def _predict(
    model: Segmenter,
    samples: Sequence[Sample],
    params: PseudoLabelParams,
    compute: RunContext,
    split: PreparedSplit,
    sums: PrototypeSums | None,
) -> tuple[Tensor, Tensor]:
    """(B, H, W) uint8 label, 255 in the ignore band, and confidence level."""
    images = torch.stack([s["image"] for s in samples]).to(compute.device)
    valid = torch.stack([s["valid"] for s in samples]).to(compute.device)
    scales, wrap = params.scales, split.full_circle
    views = Views(**params.views.model_dump()) if params.views else None
    options: dict[str, Any] = {
        "scales": scales,
        "flip": params.flip,
        "wrap": wrap,
        "views": views,
        "band": split.band,
    }
    with compute.autocast():
        if sums is None:
            logits = predict_logits(model, images, **options)
        else:
            logits, features = predict_features(model, images, scales=scales, wrap=wrap)
            prediction = logits.argmax(dim=1)
            if params.flip:
                mirrored = predict_logits(model, images.flip(-1), scales=scales, wrap=wrap)
                logits = (logits + mirrored.flip(-1)) / 2
            if views is not None:
                whole = logits
                logits = mix_views(
                    model,
                    images,
                    lambda: whole,
                    views,
                    wrap=wrap,
                    band=split.band,
                    scales=scales,
                    flip=params.flip,
                )
        if (share := params.source_colours) > 0:
            recoloured = predict_logits(model, in_source_colours(model, images, valid), **options)
            logits = (logits + share * recoloured) / (1 + share)
    confidence, label = logits.float().softmax(dim=1).max(dim=1)
    label, level = label.masked_fill(~valid, IGNORE_INDEX), quantise(confidence)
    if sums is not None:
        sums.update(features, prediction, label, level)
    return label.to(torch.uint8), level


def class_limits(pieces: Sequence[Path], params: PseudoLabelParams, num_classes: int) -> ClassThresholds:
    """Thresholds per class from the histograms of all pieces."""
    histogram = ConfidenceHistogram(num_classes)
    for piece in pieces:
        histogram.counts += load_file(piece / COUNTS)["histogram"]
    return histogram.thresholds(quantile=params.quantile, cap=params.cap)


def _write_sums(folder: Path, pieces: Sequence[Path], limits: ClassThresholds, work: LabelWork) -> None:
    """Join the sums at the thresholds, and say which model and scales they belong to."""
    rows = torch.arange(len(limits.level))
    joined: dict[str, Tensor] = {}
    for piece in pieces:
        stored = load_file(piece / COUNTS)
        for key in ("total", "images"):
            part = stored[key][rows, limits.level]
            joined[key] = joined[key] + part if key in joined else part
    about = {"checkpoint": work.digests[0], "scales": work.params.scales}
    # One key: safetensors writes several in any order.
    (folder / PROTOTYPE_SUMS).write_bytes(save(joined, {"about": json.dumps(about, sort_keys=True)}))


def _describe(
    folder: Path, split: PreparedSplit, limits: ClassThresholds, context: RunContext
) -> dict[str, float]:
    space = split.space
    share = limits.kept / limits.predicted.clamp(min=1)
    table = pd.DataFrame(
        {
            "class": space.names,
            "predicted_pixels": limits.predicted.tolist(),
            "kept_pixels": limits.kept.tolist(),
            "kept_share": share.tolist(),
            "threshold": (limits.level / 255).tolist(),
        }
    )
    table.to_csv(folder / "classes.csv", index=False, float_format="%.6g")
    metrics = {
        "kept_share": float(limits.kept.sum() / limits.predicted.sum().clamp(min=1)),
        "classes_predicted": float((limits.predicted > 0).sum()),
    }
    write_json(folder / "metrics.json", metrics)
    present = table[table.predicted_pixels > 0]
    by_class = {
        f"kept_share/{c}": float(s) for c, s in zip(present["class"], present.kept_share, strict=True)
    }
    stored = PseudoLabelSplit(split, folder)
    (folder / "pictures").mkdir()
    for number, index in enumerate(picture_indices(len(split), PICTURES)):
        sample = stored[index]
        rows = [sample["image"].permute(1, 2, 0), torch.from_numpy(space.colourise(sample["label"].numpy()))]
        picture = torch.cat(rows).numpy()
        Image.fromarray(picture).save(folder / "pictures" / f"{number}.png")
        context.logger.log_image(f"pictures/{number}", picture, 0)
    context.logger.log_metrics(metrics | by_class, 0)
    return metrics
