"""Features by class: sums and means over the pixels of a label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_label(label: Tensor, size: tuple[int, int], *, corner: bool = False) -> Tensor:
    """(B, H, W) int64 -> (B, h, w) int64: the label at the centre of each cell, or (released) its corner."""
    if label.shape[-2:] == size:
        return label
    mode = "nearest" if corner else "nearest-exact"
    return F.interpolate(label[:, None].to(torch.float32), size=size, mode=mode)[:, 0].long()


def class_sums(features: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum of the features of every class in a batch, as one scatter.

    Args:
        features: (B, D, h, w).
        label: (B, H, W) int64, 255 = ignored; resized to (h, w) by nearest neighbour.
        num_classes: K.

    Returns:
        sums (K, D) and pixels (K,), both float32.
    """
    small = resize_label(label, (features.shape[-2], features.shape[-1])).flatten()
    flat = features.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, D)
    slot = torch.where(small < num_classes, small, num_classes)
    sums = flat.new_zeros(num_classes + 1, flat.shape[1]).index_add_(0, slot, flat)[:num_classes]
    ones = torch.ones_like(slot, dtype=torch.float32)
    pixels = flat.new_zeros(num_classes + 1).index_add_(0, slot, ones)[:num_classes]
    return sums, pixels


def class_means(features: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """As ``class_sums``, but means (K, D), zeros where a class is absent, and pixels (K,)."""
    sums, pixels = class_sums(features, label, num_classes)
    return sums / pixels.clamp(min=1)[:, None], pixels


def summable(x: Tensor) -> Tensor:
    """``x`` as float64 multiples of 2**-30: their sums are exact up to 2**23, in whatever order."""
    return (x.to(torch.float64) * 2**30).round() / 2**30
