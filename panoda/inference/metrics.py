"""The confusion matrix of a whole data set, and what is read off it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panoda.labels import IGNORE_INDEX


class ConfusionMatrix:
    """Pixel counts by true and predicted class, summed over everything it was updated with.

    Labels of 255 are left out. A prediction outside 0..K-1 on a labelled pixel counts as a miss of the
    true class. A class that never occurs in the labels has IoU nan and is left out of the mean, so the
    classes averaged depend on the data set alone, never on the model; pixels predicted as such a class still
    count as misses of their true class.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with nothing counted."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, found {num_classes}")
        self.num_classes = num_classes
        # Column K collects predictions outside the classes.
        self._counts = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)

    @property
    def matrix(self) -> Tensor:
        """(K, K) int64, rows true class, columns predicted class."""
        return self._counts[:, :-1]

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Count pixels; asynchronous on a GPU.

        Args:
            pred: Predicted train ids, any shape, any integer type.
            label: True train ids or 255, of the same shape and device.

        Raises:
            ValueError: shapes differ.
        """
        if pred.shape != label.shape:
            raise ValueError(f"pred has shape {tuple(pred.shape)}, label {tuple(label.shape)}")
        if self._counts.device != label.device:
            self._counts = self._counts.to(label.device)
        k = self.num_classes
        pred, label = pred.flatten().long(), label.flatten().long()
        column = torch.where((pred >= 0) & (pred < k), pred, k)
        counted = (label >= 0) & (label < k) & (label != IGNORE_INDEX)
        cells = torch.where(counted, label * (k + 1) + column, k * (k + 1))
        self._counts += _bincount(cells, k * (k + 1) + 1)[:-1].view(k, k + 1)

    @property
    def counts(self) -> Tensor:
        """(K, K + 1) int64: the matrix, and in column K predictions outside the classes."""
        return self._counts

    def merge(self, other: ConfusionMatrix) -> None:
        """Add another matrix of the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes")
        self._counts += other._counts.to(self._counts.device)

    def iou(self) -> Tensor:
        """(K,) float64 intersection over union, on the CPU; nan where a class has no labelled pixel."""
        counts = self._counts.cpu().double()
        hit = counts.diagonal()
        true, predicted = counts.sum(dim=1), counts[:, :-1].sum(dim=0)
        nan = torch.full_like(hit, float("nan"))
        return torch.where(true > 0, hit / (true + predicted - hit), nan)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean IoU as a fraction over the classes that occur in the labels; nan when none does.

        Args:
            classes: Train ids to average over; None = all.
        """
        iou = self.iou()
        if classes is not None:
            iou = iou[torch.as_tensor(list(classes), dtype=torch.long)]
        return float(iou.nanmean())

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels predicted correctly; nan without labelled pixels."""
        counts = self._counts.cpu().double()
        return float(counts.diagonal().sum() / counts.sum())


def _bincount(cells: Tensor, length: int) -> Tensor:
    if cells.device.type == "cpu":
        return torch.bincount(cells, minlength=length)
    # torch.bincount waits for the GPU to learn the largest value; scatter_add does not.
    counts = torch.zeros(length, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, cells, torch.ones_like(cells))
