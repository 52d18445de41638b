"""Evaluation of one model on one prepared split: every image is predicted once and counted.

There is one confusion matrix, and one per latitude band, azimuth sector and group. Pixels of all images are counted
into one matrix (never a mean over images); an evaluation of some images can be stored and added to that of others. All
sums are of whole numbers: how images are divided changes no bit.

Convention: longitude grows to the right and is 0 in the centre column, so azimuth sector 0 looks
forward, sector 1 is the next one to the right. Latitude bands are numbered from the top.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panoda.data.loading.prepared import PreparedSplit
from panoda.geometry.area import Area
from panoda.inference.metrics import ConfusionMatrix
from panoda.inference.prediction import predict_logits
from panoda.labels import IGNORE_INDEX
from panoda.system.background import read_ahead

CONFIDENCE_STEPS = 2**24
"""Steps of a confidence in a sum."""
AREA_STEPS = 2**24
"""Steps of a pixel's area in a sum; that many for the largest pixel."""


@dataclass(frozen=True)
class Region:
    """A latitude band or azimuth sector and what was counted in it.

    Attributes:
        start_deg: Lower limit in degrees (latitude up positive, azimuth right positive).
        stop_deg: Upper limit in degrees.
        places: Its rows (``dim`` 1) or columns (``dim`` 2).
        confusion: Counts of the region's labelled pixels.
    """

    start_deg: float
    stop_deg: float
    dim: int
    places: Tensor
    confusion: ConfusionMatrix


class Evaluation:
    """What one model did on one split.

    Attributes:
        latitude: One region per band, from the top; empty for pinhole images.
        azimuth: One region per sector; empty unless the images are full-circle panoramas.
        areas: The same matrix with pixels weighted by the sphere's area they cover, in steps of ``area_step``
            steradians ((K, K) int64); None for pinhole images.
        groups: Group -> counts over its images, in alphabetical order; empty unless groups were asked for.
        group_images: Group -> number of images.
        predicted_pixels: (K,) int64, pixels predicted as each class outside the ignore band, labelled or not.
        confidence_sum: Sum of the largest class probability over those pixels, in ``CONFIDENCE_STEPS``.
        predictions: (H, W) uint8 predictions of the images asked for, by index.
        confidences: (H, W) uint8 largest class probability of the same images in 255ths.
    """

    def __init__(
        self,
        split: PreparedSplit,
        num_classes: int,
        *,
        bands: int = 6,
        sectors: int = 8,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Decide from the projection what there is to count; ``groups`` has one for every image of the split."""
        self.num_classes = num_classes
        self.confusion = ConfusionMatrix(num_classes)
        self.latitude: list[Region] = []
        self.azimuth: list[Region] = []
        self.areas: Tensor | None = None
        if split.projection == "erp":
            top, bottom = float(split.lat_top_deg), float(split.lat_bottom_deg)
            limits = latitude_limits(top, bottom, bands)
            self.latitude = self._regions(limits, 1, row_bands(split.height, bands))
            band = Area(lat_top=math.radians(top), lat_bottom=math.radians(bottom))
            area = band.solid_angles(split.height, split.width).float()
            self.area_step = float(area.max()) / AREA_STEPS
            self._weights = (area.double() / self.area_step).round()
            self.areas = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        if split.full_circle:
            self.azimuth = self._regions(azimuth_limits(sectors), 2, column_sectors(split.width, sectors))
        self._group_of = groups
        self.groups = {name: ConfusionMatrix(num_classes) for name in sorted(set(groups or ()))}
        self.group_images = dict(sorted(Counter(groups or ()).items()))
        self.predicted_pixels = torch.zeros(num_classes, dtype=torch.int64)
        self.confidence_sum = self.images = 0
        self.predictions: dict[int, Tensor] = {}
        self.confidences: dict[int, Tensor] = {}

    @property
    def mean_confidence(self) -> float:
        """Mean largest class probability over all valid pixels; nan when there are none."""
        pixels = int(self.predicted_pixels.sum())
        return self.confidence_sum / CONFIDENCE_STEPS / pixels if pixels else float("nan")

    @property
    def solid_angle(self) -> Tensor | None:
        """``areas`` in steradians, (K, K) float64."""
        return None if self.areas is None else self.areas.to(torch.float64) * self.area_step

    def update(
        self, indices: Sequence[int], logits: Tensor, label: Tensor, valid: Tensor, *, keep: Sequence[int]
    ) -> None:
        """Count a batch.

        Args:
            indices: Of its images in the split.
            logits: (B, K, H, W).
            label: (B, H, W) int64, 255 = not counted.
            valid: (B, H, W) bool, False in the ignore band.
            keep: Indices of images whose prediction is kept.
        """
        confidence, pred = logits.float().softmax(1).max(1)  # (B, H, W) each
        label = label.masked_fill(~valid, IGNORE_INDEX)
        self.confusion.update(pred, label)
        for region in (*self.latitude, *self.azimuth):
            dim, places = region.dim, region.places.to(pred.device)
            region.confusion.update(pred.index_select(dim, places), label.index_select(dim, places))
        if self.areas is not None:
            self.areas += self._weighted(pred, label).cpu()
        self.predicted_pixels += torch.bincount(pred[valid], minlength=self.num_classes).cpu()
        self.confidence_sum += int((confidence[valid] * CONFIDENCE_STEPS).round().long().sum())
        self.images += len(indices)
        for row, index in enumerate(indices):
            if self._group_of is not None:
                self.groups[self._group_of[index]].update(pred[row], label[row])
            if index in keep:
                self.predictions[index] = pred[row].to(torch.uint8).cpu()
                self.confidences[index] = (255 * confidence[row]).round().to(torch.uint8).cpu()

    def tensors(self) -> dict[str, Tensor]:
        """Everything counted, by name, to be stored and added again."""
        found = {f"matrix/{number}": one.matrix for number, one in enumerate(self._matrices())}
        found |= {f"prediction/{index}": label for index, label in self.predictions.items()}
        found |= {f"confidence/{index}": values for index, values in self.confidences.items()}
        if self.areas is not None:
            found["areas"] = self.areas
        found["predicted_pixels"] = self.predicted_pixels
        found["confidence_sum"] = torch.tensor(self.confidence_sum)
        found["images"] = torch.tensor(self.images)
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add what was counted on other images of the same split: the result of ``tensors``."""
        for number, one in enumerate(self._matrices()):
            one.matrix += tensors[f"matrix/{number}"]
        for name, tensor in tensors.items():
            kind, _, index = name.partition("/")
            if kind == "prediction":
                self.predictions[int(index)] = tensor
            elif kind == "confidence":
                self.confidences[int(index)] = tensor
        if self.areas is not None:
            self.areas += tensors["areas"]
        self.predicted_pixels += tensors["predicted_pixels"]
        self.confidence_sum += int(tensors["confidence_sum"])
        self.images += int(tensors["images"])

    def _matrices(self) -> list[ConfusionMatrix]:
        regions = (region.confusion for region in (*self.latitude, *self.azimuth))
        return [self.confusion, *regions, *self.groups.values()]

    def _regions(self, limits: Sequence[tuple[float, float]], dim: int, of: Tensor) -> list[Region]:
        """Regions by their limits; ``of`` is the region of every row or column."""
        return [
            Region(start, stop, dim, (of == i).nonzero().squeeze(1), ConfusionMatrix(self.num_classes))
            for i, (start, stop) in enumerate(limits)
        ]

    def _weighted(self, pred: Tensor, label: Tensor) -> Tensor:
        k, height = self.num_classes, label.shape[1]
        row = torch.arange(height, device=label.device).view(1, height, 1).expand_as(label)
        kept = label != IGNORE_INDEX
        cell = (row[kept] * k + label[kept]) * k + pred[kept]
        counts = torch.bincount(cell, minlength=height * k * k).view(height, k, k)
        # Whole numbers below 2**53: exact, and CUDA multiplies no matrices of integers.
        return torch.einsum("h,hij->ij", self._weights.to(counts.device), counts.double()).long()


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    split: PreparedSplit,
    result: Evaluation,
    *,
    batch_size: int = 4,
    keep: Sequence[int] = (),
    images: range | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    **prediction: Any,
) -> Evaluation:
    """Predict images of a split once and count them into ``result``.

    Args:
        model: Segmentation model; it is put into evaluation mode and moved to ``device``.
        split: Prepared images of one size; without labels only predictions are counted.
        keep: Indices of images whose prediction and confidence are kept, if they are among ``images``.
        images: The images to count; None = all.
        dtype: Autocast type, or None.
        prediction: Scales, flip and the like, as in ``predict_logits``.

    Raises:
        ValueError: the split is empty.
    """
    if len(split) == 0:
        raise ValueError(f"{split.folder}: the split holds no image; prepare at least one")
    device = torch.device(device)
    with torch.inference_mode(False):  # weights moved in inference mode could not be trained any more
        model = model.to(device).eval()
    prediction |= {"wrap": split.full_circle, "band": split.band}
    batches = _batches(split, range(len(split)) if images is None else images, batch_size)
    for indices, pixels, label, valid in read_ahead(batches):
        valid = valid.to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = predict_logits(model, pixels.to(device), valid=valid, **prediction)
        result.update(indices, logits, label.to(device), valid, keep=keep)
    return result


def _batches(
    split: PreparedSplit, images: range, batch_size: int
) -> Iterator[tuple[range, Tensor, Tensor, Tensor]]:
    for start in range(0, len(images), batch_size):
        indices = images[start : start + batch_size]
        samples = [split[i] for i in indices]
        yield (
            indices,
            torch.stack([s["image"] for s in samples]),
            torch.stack([s["label"] for s in samples]).long(),
            torch.stack([s["valid"] for s in samples]),
        )


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
