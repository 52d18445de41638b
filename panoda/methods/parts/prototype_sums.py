"""Prototypes of the target in the pass that makes its pseudo-labels, before the thresholds are known.

A prototype is the mean over images of the mean feature over pixels where prediction and pseudo-label agree
(``panoda.methods.parts.prototypes``), and a pseudo-label is kept from its class's threshold on. Thresholds are
known after the last image alone, but they are one of few levels: so the sum over images is kept for every
level that a threshold can have, (K, L, D) float64. That is exact, and it does not grow with the images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.class_features import resize_label, summable
from panoda.methods.parts.thresholds import LEVELS


class PrototypeSums:
    """Sums over images of per-image class means, for every threshold that there may be.

    Attributes:
        total: (K, L, D) float64; ``total[k, t]`` is the sum with threshold level t for class k.
        images: (K, L) int64, images that have such a pixel.

    Args:
        num_classes: K.
        dim: D.
        cap: Upper bound of every threshold, in 0..1; L is one more than its level.
        device: Where to sum.
    """

    def __init__(self, num_classes: int, dim: int, *, cap: float, device: torch.device | str = "cpu") -> None:
        """Start with nothing."""
        # Every threshold is at most this level, so pixels above it need not be told apart.
        levels = math.floor(cap * (LEVELS - 1)) + 1
        self.total = torch.zeros(num_classes, levels, dim, dtype=torch.float64, device=device)
        self.images = torch.zeros(num_classes, levels, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, prediction: Tensor, label: Tensor, level: Tensor) -> None:
        """Add images.

        Args:
            features: (B, D, h, w).
            prediction: (B, H, W) int64, what the features' own pass predicts.
            label: (B, H, W) int64 classes before any threshold, 255 = ignored.
            level: (B, H, W) uint8, quantised confidence of ``label``.
        """
        classes, levels, dim = self.total.shape
        agreed = torch.where(prediction == label, label, torch.full_like(label, IGNORE_INDEX))
        size = (features.shape[-2], features.shape[-1])
        small, confidence = resize_label(agreed, size), resize_label(level.long(), size)
        cell = small * levels + confidence.clamp(max=levels - 1)
        cell = torch.where(small == IGNORE_INDEX, classes * levels, cell)
        for feature, slot in zip(features.float(), cell, strict=True):
            flat = feature.flatten(1).T  # (h * w, D)
            sums = flat.new_zeros(classes * levels + 1, dim).index_add_(0, slot.flatten(), flat)
            ones = torch.ones(slot.numel(), dtype=torch.float64, device=slot.device)
            pixels = ones.new_zeros(classes * levels + 1).index_add_(0, slot.flatten(), ones)
            # From level t on: sums from the top down.
            above = _from_level(sums[:-1].view(classes, levels, dim))
            counts = _from_level(pixels[:-1].view(classes, levels))
            self.total += summable(above / counts.clamp(min=1)[..., None])
            self.images += (counts > 0).long()

    def at(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The sums once the thresholds are known.

        Args:
            level: (K,) int64, threshold level of each class.

        Returns:
            total (K, D) float64 and images (K,) int64, as in ``DomainPrototypes``.
        """
        rows = torch.arange(self.total.shape[0], device=self.total.device)
        level = level.to(self.total.device)
        return self.total[rows, level], self.images[rows, level]


def _from_level(x: Tensor) -> Tensor:
    """Sums of (K, L, ...) over each level and those above it, float64."""
    x = x.to(torch.float64)
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        # Some versions of torch (2.11) have no deterministic cumsum of floating point on CUDA.
        above = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).triu()
        return torch.einsum("lm,km...->kl...", above, x)
    return x.flip(1).cumsum(1).flip(1)
