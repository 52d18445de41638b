"""What an evaluation counts: one confusion matrix, and one per latitude band, azimuth sector and group.

Pixels of all images are counted into one matrix (never a mean over images); an evaluation of some images can
be stored and added to that of others. All sums are of whole numbers: how images are divided changes no bit.

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
from torch import Tensor

from panoda.data.loading.prepared import PreparedSplit
from panoda.geometry.area import Area
from panoda.inference.metrics import ConfusionMatrix
from panoda.labels import IGNORE_INDEX

CONFIDENCE_STEPS = 2**24
"""Steps of a confidence in a sum."""
AREA_STEPS = 2**24
"""Steps of a pixel's area in a sum; that many for the largest pixel."""


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
        latitude: One region per band, from the top; empty for pinhole images.
        azimuth: One region per sector; empty unless the images are full-circle panoramas.
        areas: The same matrix with pixels weighted by the sphere's area they cover, in steps of ``area_step``
            ((K, K) int64); None for pinhole images.
        area_step: Steradians.
        groups: Group -> counts over its images, in alphabetical order; empty unless groups were asked for.
        group_images: Group -> number of images.
        predicted_pixels: (K,) int64, pixels predicted as each class outside the ignore band, labelled or not.
        confidence_sum: Sum of the largest class probability over those pixels, in ``CONFIDENCE_STEPS``.
        predictions: (H, W) uint8 predictions of the images asked for, by index.
        confidences: (H, W) uint8 largest class probability of the same images in 255ths.
    """

    confusion: ConfusionMatrix
    latitude: list[Region]
    azimuth: list[Region]
    areas: Tensor | None
    area_step: float
    predicted_pixels: Tensor
    groups: dict[str, ConfusionMatrix] = field(default_factory=dict)
    group_images: dict[str, int] = field(default_factory=dict)
    confidence_sum: int = 0
    images: int = 0
    predictions: dict[int, Tensor] = field(default_factory=dict)
    confidences: dict[int, Tensor] = field(default_factory=dict)

    @property
    def mean_confidence(self) -> float:
        """Mean largest class probability over all valid pixels; nan when there are none."""
        pixels = int(self.predicted_pixels.sum())
        return self.confidence_sum / CONFIDENCE_STEPS / pixels if pixels else float("nan")

    @property
    def solid_angle(self) -> Tensor | None:
        """``areas`` in steradians, (K, K) float64."""
        return None if self.areas is None else self.areas.to(torch.float64) * self.area_step

    def tensors(self) -> dict[str, Tensor]:
        """Everything counted, by name, to be stored and added again."""
        found = {f"matrix/{name}": matrix.counts for name, matrix in self._matrices()}
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
        for name, matrix in self._matrices():
            matrix.counts.add_(tensors[f"matrix/{name}"])
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


class PixelCounter:
    """Counts one split batch by batch."""

    def __init__(self, split: PreparedSplit, num_classes: int, bands: int, sectors: int):
        """Decide from the projection what there is to count."""
        self.num_classes = num_classes
        self.total = ConfusionMatrix(num_classes)
        self.latitude: list[Region] = []
        self.azimuth: list[Region] = []
        self.rows = row_bands(split.height, bands)
        self.columns = column_sectors(split.width, sectors)
        self.weights: Tensor | None = None
        self.areas: Tensor | None = None
        self.area_step = 0.0
        if split.projection == "erp":
            top, bottom = float(split.lat_top_deg), float(split.lat_bottom_deg)
            limits = latitude_limits(top, bottom, bands)
            self.latitude = [
                Region("latitude", i, *ab, ConfusionMatrix(num_classes)) for i, ab in enumerate(limits)
            ]
            band = Area(lat_top=math.radians(top), lat_bottom=math.radians(bottom))
            area = band.solid_angles(split.height, split.width).float()
            self.area_step = float(area.max()) / AREA_STEPS
            self.weights = (area.double() / self.area_step).round()
            self.areas = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        if split.full_circle:
            self.azimuth = [
                Region("azimuth", i, *ab, ConfusionMatrix(num_classes))
                for i, ab in enumerate(azimuth_limits(sectors))
            ]

    def result(self, groups: Sequence[str] | None) -> Evaluation:
        """What ``update`` counts into, and nothing of what it does not count; of no image yet."""
        return Evaluation(
            confusion=self.total,
            latitude=self.latitude,
            azimuth=self.azimuth,
            areas=self.areas,
            area_step=self.area_step,
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
        if self.weights is not None and self.areas is not None:
            self.areas += self._weigh(pred, label, self.weights).cpu()

    def _weigh(self, pred: Tensor, label: Tensor, weights: Tensor) -> Tensor:
        k, height = self.num_classes, label.shape[1]
        row = torch.arange(height, device=label.device).view(1, height, 1).expand_as(label)
        kept = label != IGNORE_INDEX
        cell = (row[kept] * k + label[kept].long()) * k + pred[kept].long()
        counts = torch.bincount(cell, minlength=height * k * k).view(height, k, k)
        # Whole numbers below 2**53: exact, and CUDA multiplies no matrices of integers.
        return torch.einsum("h,hij->ij", weights.to(counts.device), counts.to(torch.float64)).long()
