"""Mutual prototypical adaptation loss (Trans4PASS, arXiv 2203.01452, eq. 7-9).

Per labelled pixel with feature f and prototype p of its (pseudo-)label:
``soft_share * T^2 * KL(softmax(p / T) || softmax(f / T)) + (1 - soft_share) * CE(f, argmax p)``.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from panoda.labels import IGNORE_INDEX
from panoda.system.shares import denominator


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


def mpa_loss(
    features: Tensor,
    label: Tensor,
    prototypes: Tensor,
    seen: Tensor | None = None,
    *,
    temperature: float = 20.0,
    soft_share: float = 0.9,
    normaliser: Literal["released", "pixels"] = "pixels",
    left_out: Tensor | None = None,
) -> Tensor:
    """The MPA feature loss of one domain.

    Denominators. ``pixels``: KL summed over channels and hard term, both averaged over the pixels whose
    label has a prototype; other pixels count nowhere. ``released``: KL averaged over all pixels AND
    channels, hard term over all pixels; pixels without a prototype are their own targets, so they add
    nothing to the KL and a self-training term to the hard part (this is what the released code computes).

    Args:
        features: (B, D, h, w).
        label: (B, H, W) int64, 255 = ignored; resized to (h, w) by nearest neighbour.
        prototypes: (K, D).
        seen: (K,) bool, False for classes without a prototype; None = all seen.
        temperature: T.
        soft_share: lambda, in 0..1.
        normaliser: see above.
        left_out: (B, H, W) bool, pixels of the other domain: they enter no sum and no denominator.

    Returns:
        Scalar; 0 when no pixel has a prototype (``pixels``).
    """
    size = (features.shape[-2], features.shape[-1])
    small = resize_label(label, size, corner=normaliser == "released").flatten()
    flat = features.float().permute(0, 2, 3, 1).flatten(0, 2)  # (N, D)
    has = small != IGNORE_INDEX
    slot = torch.where(has, small, torch.zeros_like(small))
    if seen is not None:
        has = has & seen[slot]
    own = torch.ones_like(has)
    if left_out is not None:
        own = resize_label(left_out.long(), size, corner=normaliser == "released").flatten() == 0
        has = has & own
    target = torch.where(has[:, None], prototypes.float()[slot], flat.detach())
    log_f = F.log_softmax(flat / temperature, dim=1)
    log_p = F.log_softmax(target / temperature, dim=1)
    soft = (log_p.exp() * (log_p - log_f)).sum(dim=1)  # (N,)
    hard = F.cross_entropy(flat, target.argmax(dim=1), reduction="none")  # (N,)
    scale = soft_share * temperature**2
    if normaliser == "released":
        return ((scale * soft / flat.shape[1] + (1 - soft_share) * hard) * own).sum() / denominator(own.sum())
    return ((scale * soft + (1 - soft_share) * hard) * has).sum() / denominator(has.sum())


def summable(x: Tensor) -> Tensor:
    """``x`` as float64 multiples of 2**-30: their sums are exact up to 2**23, in whatever order."""
    return (x.to(torch.float64) * 2**30).round() / 2**30
