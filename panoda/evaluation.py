"""Dataset-level evaluation of one model on one prepared split.

Pixels of all images are counted into one confusion matrix (never a mean over images), and into one
per latitude band, per azimuth sector and, on demand, per group of images. mIoU is the nan-mean over the
classes that are labelled.

Convention: longitude grows to the right and is 0 in the centre column, so azimuth sector 0 looks
forward, sector 1 is the next one to the right. Latitude bands are numbered from the top.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from panoda.background import read_ahead
from panoda.data.prepared import PreparedSplit
from panoda.geometry.erp import solid_angle_weights
from panoda.inference import predict_logits
from panoda.labels import IGNORE_INDEX
from panoda.metrics import ConfusionMatrix
from panoda.sliding import Sliding


@dataclass(frozen=True)
class Region:
    """A latitude band or azimuth sector and what was counted in it.

    Attributes:
        kind: What the limits measure.
        index: 0 = uppermost band, or the sector looking forward.
        start_deg: Lower limit in degrees (latitude up positive, azimuth right positive).
        stop_deg: Upper limit in degrees.
        confusion: Counts of the region's labelled pixels.
    """

    kind: Literal["latitude", "azimuth"]
    index: int
    start_deg: float
    stop_deg: float
    confusion: ConfusionMatrix

    @property
    def centre_deg(self) -> float:
        """Middle of the region in degrees."""
        return (self.start_deg + self.stop_deg) / 2


@dataclass
class Evaluation:
    """What one model did on one split.

    Attributes:
        confusion: Counts over the whole split.
        latitude: One region per band, from the top; empty for pinhole images.
        azimuth: One region per sector; empty unless the images are full-circle panoramas.
        solid_angle: The same matrix with pixels weighted by the sphere's area they cover
            (float64, (K, K)); None for pinhole images.
        groups: Group -> counts over its images, in alphabetical order; empty unless groups were asked for.
        group_images: Group -> number of images.
        predicted_pixels: (K,) int64, pixels predicted as each class outside the ignore band, labelled or not.
        confidence_sum: Sum of the largest class probability over those pixels.
        images: Number of images.
        predictions: (H, W) uint8 predictions of the images asked for, by index.
    """

    confusion: ConfusionMatrix
    latitude: list[Region]
    azimuth: list[Region]
    solid_angle: Tensor | None
    predicted_pixels: Tensor
    groups: dict[str, ConfusionMatrix] = field(default_factory=dict)
    group_images: dict[str, int] = field(default_factory=dict)
    confidence_sum: float = 0.0
    images: int = 0
    predictions: dict[int, Tensor] = field(default_factory=dict)

    @property
    def mean_confidence(self) -> float:
        """Mean largest class probability over all valid pixels; nan when there are none."""
        pixels = int(self.predicted_pixels.sum())
        return self.confidence_sum / pixels if pixels else float("nan")

    def tensors(self) -> dict[str, Tensor]:
        """Everything counted, by name, to be stored and added again."""
        found = {f"matrix/{name}": matrix.counts for name, matrix in self._matrices()}
        found |= {f"prediction/{index}": label for index, label in self.predictions.items()}
        if self.solid_angle is not None:
            found["solid_angle"] = self.solid_angle
        found["predicted_pixels"] = self.predicted_pixels
        found["confidence_sum"] = torch.tensor(self.confidence_sum, dtype=torch.float64)
        found["images"] = torch.tensor(self.images)
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add what was counted on other images of the same split: the result of ``tensors``."""
        for name, matrix in self._matrices():
            matrix.counts.add_(tensors[f"matrix/{name}"])
        for name, tensor in tensors.items():
            if name.startswith("prediction/"):
                self.predictions[int(name.removeprefix("prediction/"))] = tensor
        if self.solid_angle is not None:
            self.solid_angle += tensors["solid_angle"]
        self.predicted_pixels += tensors["predicted_pixels"]
        self.confidence_sum += float(tensors["confidence_sum"])
        self.images += int(tensors["images"])

    def _matrices(self) -> Iterator[tuple[str, ConfusionMatrix]]:
        yield "all", self.confusion
        for region in (*self.latitude, *self.azimuth):
            yield f"{region.kind}/{region.index}", region.confusion
        for number, matrix in enumerate(self.groups.values()):
            yield f"group/{number}", matrix


def weighted_iou(counts: Tensor) -> Tensor:
    """IoU per class of a (K, K) matrix of weighted pixels (rows = label, columns = prediction).

    Returns:
        (K,) float64 in 0..1; nan where a class is not labelled, as in ``ConfusionMatrix.iou``.
    """
    hit, true = counts.diagonal(), counts.sum(1)
    nan = torch.full_like(hit, float("nan"))
    return torch.where(true > 0, hit / (true + counts.sum(0) - hit), nan)


def latitude_limits(top_deg: float, bottom_deg: float, bands: int) -> list[tuple[float, float]]:
    """(lower, upper) latitude of bands of equal angle, from the top, in degrees."""
    step = (top_deg - bottom_deg) / bands
    return [(top_deg - (i + 1) * step, top_deg - i * step) for i in range(bands)]


def azimuth_limits(sectors: int) -> list[tuple[float, float]]:
    """(left, right) azimuth of sectors of equal width in degrees; sector 0 is centred on 0.

    Example:
        >>> azimuth_limits(4)
        [(-45.0, 45.0), (45.0, 135.0), (135.0, 225.0), (225.0, 315.0)]
    """
    step = 360.0 / sectors
    return [((i - 0.5) * step, (i + 0.5) * step) for i in range(sectors)]


def row_bands(height: int, bands: int) -> Tensor:
    """(H,) int64 band of each pixel row; rows are equally spaced in latitude."""
    return ((torch.arange(height) + 0.5) * bands / height).long()


def column_sectors(width: int, sectors: int) -> Tensor:
    """(W,) int64 azimuth sector of each column of a full-circle panorama."""
    turn = (torch.arange(width, dtype=torch.float64) + 0.5) / width - 0.5
    return torch.floor(turn * sectors + 0.5).long() % sectors


class _Counter:
    """Counts one split batch by batch; integer counts per row make the solid-angle matrix exact."""

    def __init__(self, split: PreparedSplit, num_classes: int, bands: int, sectors: int):
        """Decide from the projection what there is to count."""
        self.num_classes = num_classes
        self.total = ConfusionMatrix(num_classes)
        self.latitude: list[Region] = []
        self.azimuth: list[Region] = []
        self.rows = row_bands(split.height, bands)
        self.columns = column_sectors(split.width, sectors)
        self.weights: Tensor | None = None
        self.weighted: Tensor | None = None
        if split.projection == "erp":
            top, bottom = float(split.lat_top_deg), float(split.lat_bottom_deg)
            limits = latitude_limits(top, bottom, bands)
            self.latitude = [
                Region("latitude", i, *ab, ConfusionMatrix(num_classes)) for i, ab in enumerate(limits)
            ]
            area = solid_angle_weights(
                split.height, split.width, lat_top=math.radians(top), lat_bottom=math.radians(bottom)
            )
            self.weights = area[:, 0].double()
            self.weighted = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        if split.full_circle:
            self.azimuth = [
                Region("azimuth", i, *ab, ConfusionMatrix(num_classes))
                for i, ab in enumerate(azimuth_limits(sectors))
            ]

    def result(self, groups: Sequence[str] | None) -> Evaluation:
        """What ``update`` counts into, and nothing of what it does not count."""
        return Evaluation(
            confusion=self.total,
            latitude=self.latitude,
            azimuth=self.azimuth,
            solid_angle=self.weighted,
            predicted_pixels=torch.zeros(self.num_classes, dtype=torch.int64),
            groups={name: ConfusionMatrix(self.num_classes) for name in sorted(set(groups or ()))},
            group_images=dict(sorted(Counter(groups or ()).items())),
        )

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Count a batch of (B, H, W) predictions and labels (255 = not counted)."""
        self.total.update(pred, label)
        for region in self.latitude:
            rows = (self.rows == region.index).nonzero().squeeze(1).to(pred.device)
            region.confusion.update(pred.index_select(1, rows), label.index_select(1, rows))
        for region in self.azimuth:
            columns = (self.columns == region.index).nonzero().squeeze(1).to(pred.device)
            region.confusion.update(pred.index_select(2, columns), label.index_select(2, columns))
        if self.weights is not None and self.weighted is not None:
            self.weighted += self._weigh(pred, label, self.weights).cpu()

    def _weigh(self, pred: Tensor, label: Tensor, weights: Tensor) -> Tensor:
        k, height = self.num_classes, label.shape[1]
        row = torch.arange(height, device=label.device).view(1, height, 1).expand_as(label)
        kept = label != IGNORE_INDEX
        cell = (row[kept] * k + label[kept].long()) * k + pred[kept].long()
        counts = torch.bincount(cell, minlength=height * k * k).view(height, k, k)
        return torch.einsum("h,hij->ij", weights.to(counts.device), counts.to(torch.float64))


def nothing_counted(
    split: PreparedSplit,
    *,
    num_classes: int,
    latitude_bands: int = 6,
    azimuth_sectors: int = 8,
    groups: Sequence[str] | None = None,
) -> Evaluation:
    """An evaluation of no image yet, for ``Evaluation.add``; arguments as in ``evaluate_model``."""
    return _Counter(split, num_classes, latitude_bands, azimuth_sectors).result(groups)


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    split: PreparedSplit,
    *,
    num_classes: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    sliding: Sliding | None = None,
    batch_size: int = 4,
    latitude_bands: int = 6,
    azimuth_sectors: int = 8,
    groups: Sequence[str] | None = None,
    keep: Sequence[int] = (),
    images: range | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Predict images of a split once and count.

    Args:
        model: Segmentation model; it is put into evaluation mode and moved to ``device``.
        split: Prepared images of one size; without labels only predictions are counted.
        num_classes: K of model and labels.
        scales: Image scales whose logits are averaged.
        flip: Also average the mirrored image.
        sliding: Window and stride of sliding windows, or None for whole images.
        batch_size: Images per forward pass.
        latitude_bands: Bands of equal angle (ERP only).
        azimuth_sectors: Sectors of equal width (full-circle ERP only).
        groups: Group of every image of the split, to count each group apart, too; None = do not.
        keep: Indices of images whose prediction is returned, if they are among ``images``.
        images: The images to count; None = all.
        device: Where to compute.
        dtype: Autocast type, or None for float32.

    Raises:
        ValueError: the split is empty, or keep names an image it does not have.
    """
    if len(split) == 0:
        raise ValueError(f"{split.folder}: the split holds no image; prepare at least one")
    if missing := [i for i in keep if not 0 <= i < len(split)]:
        raise ValueError(f"{split.folder}: pictures of images {missing} asked for, it has {len(split)}")
    device = torch.device(device)
    model = model.to(device).eval()
    counter = _Counter(split, num_classes, latitude_bands, azimuth_sectors)
    result = counter.result(groups)
    wrap = split.full_circle
    batches = _batches(split, range(len(split)) if images is None else images, batch_size)
    for indices, pixels, labels, valid in read_ahead(batches):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = predict_logits(
                model, pixels.to(device), scales=scales, flip=flip, wrap=wrap, sliding=sliding
            )
        confidence, pred = logits.float().softmax(1).max(1)  # (B, H, W) each
        valid = valid.to(device)
        counted = labels.to(device).masked_fill(~valid, IGNORE_INDEX)
        counter.update(pred, counted)
        if groups is not None:
            for row, index in enumerate(indices):
                result.groups[groups[index]].update(pred[row], counted[row])
        result.predicted_pixels += torch.bincount(pred[valid], minlength=num_classes).cpu()
        result.confidence_sum += float(confidence[valid].sum(dtype=torch.float64))
        result.images += len(indices)
        for row, index in enumerate(indices):
            if index in keep:
                result.predictions[index] = pred[row].to(torch.uint8).cpu()
    return result


def _batches(
    split: PreparedSplit, images: range, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    for start in range(0, len(images), batch_size):
        indices = list(images[start : start + batch_size])
        samples = [split[i] for i in indices]
        yield (
            indices,
            torch.stack([s["image"] for s in samples]),
            torch.stack([s["label"] for s in samples]).long(),
            torch.stack([s["valid"] for s in samples]),
        )
