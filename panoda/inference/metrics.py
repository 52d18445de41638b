"""The confusion matrix of a whole data set, and what is read off it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panoda.labels import IGNORE_INDEX


def iou(counts: Tensor) -> Tensor:
    """(K,) float64 intersection over union of a (K, K) matrix (rows = label, columns = prediction), on the CPU.

    Nan where a class is not labelled.
    """
    counts = counts.cpu().double()
    hit, true = counts.diagonal(), counts.sum(dim=1)
    return torch.where(true > 0, hit / (true + counts.sum(dim=0) - hit), torch.nan)


class ConfusionMatrix:
    """Pixel counts by true and predicted class, summed over everything it was updated with.

    Labels of 255 are left out. A class that never occurs in the labels has IoU nan and is left out of the mean, so
    the classes averaged depend on the data set alone, never on the model; pixels predicted as such a class still
    count as misses of their true class.

    Attributes:
        matrix: (K, K) int64, rows true class, columns predicted class.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Count pixels; asynchronous on a GPU.

        Args:
            pred: Predicted train ids 0..K-1, any shape, any integer type.
            label: True train ids or 255, of the same shape and device.

        Raises:
            ValueError: shapes differ.
        """
        if pred.shape != label.shape:
            raise ValueError(f"pred has shape {tuple(pred.shape)}, label {tuple(label.shape)}")
        self.matrix = self.matrix.to(label.device)
        k = self.num_classes
        pred, label = pred.flatten().long(), label.flatten().long()
        counted = (label < k) & (label != IGNORE_INDEX)
        cells = torch.where(counted, label * k + pred, k * k)
        self.matrix += _bincount(cells, k * k + 1)[:-1].view(k, k)

    def iou(self) -> Tensor:
        """(K,) float64 intersection over union, on the CPU; nan where a class has no labelled pixel."""
        return iou(self.matrix)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean IoU as a fraction over the classes that occur in the labels; nan when none does.

        Args:
            classes: Train ids to average over; None = all.
        """
        found = self.iou()
        return float((found if classes is None else found[list(classes)]).nanmean())

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels predicted correctly; nan without labelled pixels."""
        return float(self.matrix.diagonal().sum().double() / self.matrix.sum())


def _bincount(cells: Tensor, length: int) -> Tensor:
    if cells.device.type == "cpu":
        return torch.bincount(cells, minlength=length)
    # torch.bincount waits for the GPU to learn the largest value; scatter_add does not.
    counts = torch.zeros(length, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, cells, torch.ones_like(cells))
