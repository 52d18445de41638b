"""Prototypes: initial mutual prototypes of both domains and their EMA during adaptation.

Initial prototype of a class in one domain: the mean over images of the mean feature over pixels where
prediction and label agree (Trans4PASS, arXiv 2203.01452, section 3.4). The mutual prototype is the mean
of both domains; a class seen in one domain uses that domain alone; a class seen in none is carried as
missing and adds nothing to any loss until a batch shows it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.class_features import class_means, class_sums, summable
from panoda.system.shares import summed


class DomainPrototypes(nn.Module):
    """Running mean over images of per-image class means, in one domain.

    Attributes:
        total: (K, D) float64 sum of per-image class means.
        images: (K,) images in which the class was predicted correctly at least once.
    """

    total: Tensor
    images: Tensor

    def __init__(self, num_classes: int, dim: int) -> None:
        """Start empty with K classes and D channels."""
        super().__init__()
        self.register_buffer("total", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("images", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def update(self, features: Tensor, prediction: Tensor, label: Tensor) -> None:
        """Add images.

        Args:
            features: (B, D, h, w).
            prediction: (B, H, W) int64.
            label: (B, H, W) int64, 255 = ignored; only pixels with prediction == label count.
        """
        agreed = torch.where(prediction == label, label, torch.full_like(label, IGNORE_INDEX))
        for feature, one in zip(features.split(1), agreed.split(1), strict=True):
            means, pixels = class_means(feature, one, self.images.shape[0])
            self.total += summable(means)
            self.images += (pixels > 0).long()

    def seen(self) -> Tensor:
        """(K,) bool."""
        return self.images > 0

    def mean(self) -> Tensor:
        """(K, D) float32, zeros where the class was not seen."""
        return (self.total / self.images.clamp(min=1)[:, None]).to(torch.float32)


def mutual(source: Tensor, source_seen: Tensor, target: Tensor, target_seen: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the prototypes of both domains.

    Args:
        source: (K, D).
        source_seen: (K,) bool.
        target: (K, D).
        target_seen: (K,) bool.

    Returns:
        prototypes (K, D): the mean where both are seen, the seen one where one is, zeros where none is;
        and seen (K,) bool.
    """
    s, t = source_seen[:, None].to(source.dtype), target_seen[:, None].to(target.dtype)
    return (source * s + target * t) / (s + t).clamp(min=1), source_seen | target_seen


class PrototypeBank(nn.Module):
    """Mutual prototypes with exponential moving average, all state in buffers.

    Between refreshes the class means of every source and target batch are collected; a refresh moves each
    prototype by ``p <- m * p + (1 - m) * mutual(mean source, mean target)`` and clears the collection.
    Classes absent since the last refresh stay where they are; a missing class takes its first mean whole.

    Attributes:
        prototypes: (K, D).
        seen: (K,) bool, False = missing.
    """

    prototypes: Tensor
    seen: Tensor
    sums: Tensor
    batches: Tensor

    def __init__(self, prototypes: Tensor, seen: Tensor, *, ema_momentum: float) -> None:
        """Start from initial prototypes; ``ema_momentum`` is the share of the old value kept."""
        super().__init__()
        self.ema_momentum = ema_momentum
        self.register_buffer("prototypes", prototypes.clone().float())
        self.register_buffer("seen", seen.clone().bool())
        self.register_buffer("sums", torch.zeros(2, *prototypes.shape))
        self.register_buffer("batches", torch.zeros(2, prototypes.shape[0]))

    @torch.no_grad()
    def collect(self, features: Tensor, label: Tensor, *, domain: int) -> None:
        """Add a batch's class means, over all its shares; ``domain`` is 0 for source, 1 for target."""
        sums, pixels = class_sums(features, label, self.seen.shape[0])
        both = summed(torch.cat([sums, pixels[:, None]], dim=1))
        sums, pixels = both[:, :-1], both[:, -1]
        self.sums[domain] += sums / pixels.clamp(min=1)[:, None]
        self.batches[domain] += (pixels > 0).float()

    @torch.no_grad()
    def refresh(self) -> Tensor:
        """Move the prototypes by one EMA step; returns the mean distance moved by seen classes (scalar)."""
        present = self.batches > 0
        means = self.sums / self.batches.clamp(min=1)[:, :, None]
        fresh, now = mutual(means[0], present[0], means[1], present[1])
        kept = torch.where(self.seen, self.ema_momentum, 0.0)[:, None]
        moved = torch.where(now[:, None], kept * self.prototypes + (1 - kept) * fresh, self.prototypes)
        distance = ((moved - self.prototypes).norm(dim=1) * now).sum() / now.sum().clamp(min=1)
        self.prototypes.copy_(moved)
        self.seen |= now
        self.sums.zero_()
        self.batches.zero_()
        return distance


def read_prototypes(folder: Path, *, num_classes: int, dim: int) -> tuple[Tensor, Tensor]:
    """The mutual prototypes (K, D) and which of them are seen (K,).

    Raises:
        ValueError: missing or unreadable file, or prototypes of another model.
    """
    path = folder / "prototypes.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: unreadable ({error}); run the prototypes stage again") from error
    mean, seen = tensors["mutual"], tensors["seen"]
    if mean.shape != (num_classes, dim):
        raise ValueError(
            f"{path}: prototypes of shape {tuple(mean.shape)}, the model needs {(num_classes, dim)}; "
            "they belong to another model, run the prototypes stage again"
        )
    return mean, seen
