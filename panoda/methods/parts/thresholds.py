"""Pseudo-label thresholds in constant memory (Trans4PASS, after CBST: Zou et al. 2018).

Confidence is quantised to 256 levels, ``level = floor(confidence * 255)``. A histogram per class then gives
the class's quantile exactly at that resolution, whatever the number of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from panoda.labels import IGNORE_INDEX

LEVELS = 256


def quantise(confidence: Tensor) -> Tensor:
    """Confidence in 0..1 -> uint8 level 0..255 (floor)."""
    return (confidence * (LEVELS - 1)).floor().clamp(0, LEVELS - 1).to(torch.uint8)


@dataclass(frozen=True)
class ClassThresholds:
    """Result of a histogram.

    Attributes:
        level: (K,) int64; pixels of class k at this level or above are kept. 0 for a class never predicted.
        predicted: (K,) pixels predicted as each class.
        kept: (K,) pixels kept.
    """

    level: Tensor
    predicted: Tensor
    kept: Tensor

    def apply(self, label: Tensor, level: Tensor) -> Tensor:
        """Set pixels below their class's threshold to 255.

        Args:
            label: (...,) integer class ids; 255 stays.
            level: (...,) uint8 confidence levels.
        """
        ignored = label == IGNORE_INDEX
        limit = self.level.to(label.device)[torch.where(ignored, 0, label).long()]
        return torch.where(ignored | (level.long() < limit), torch.full_like(label, IGNORE_INDEX), label)


class ConfidenceHistogram:
    """Pixel counts by class and confidence level."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        """Start empty with K classes."""
        self.counts = torch.zeros(num_classes, LEVELS, dtype=torch.int64, device=device)

    def update(self, label: Tensor, level: Tensor) -> None:
        """Count pixels; ``label`` integer ids (255 skipped), ``level`` uint8, of one shape."""
        k = self.counts.shape[0]
        slot = torch.where(label == IGNORE_INDEX, k, label).long() * LEVELS + level.long()
        self.counts += torch.bincount(slot.flatten(), minlength=(k + 1) * LEVELS)[: k * LEVELS].view(
            k, LEVELS
        )

    def thresholds(self, *, quantile: float, cap: float) -> ClassThresholds:
        """Per-class thresholds.

        Args:
            quantile: share of a class's pixels that may lie below its threshold, in 0..1.
            cap: upper bound of every threshold, in 0..1.

        Returns:
            For each class the confidence level of its ``quantile``-th pixel, at most that of ``cap``; pixels
            at the level itself are kept, so at least ``1 - quantile`` of each class is kept.
        """
        predicted = self.counts.sum(dim=1)
        below = self.counts.cumsum(dim=1)
        rank = torch.minimum((predicted.double() * quantile).floor().long(), (predicted - 1).clamp(min=0))
        level = (below <= rank[:, None]).sum(dim=1).clamp(max=math.floor(cap * (LEVELS - 1)))
        level = torch.where(predicted > 0, level, torch.zeros_like(level))
        grid = torch.arange(LEVELS, device=level.device)
        kept = (self.counts * (grid[None] >= level[:, None])).sum(dim=1)
        return ClassThresholds(level.cpu(), predicted.cpu(), kept.cpu())
