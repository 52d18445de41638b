"""Tasks on pairs of source and target batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from panoda.data.loading.loader import Batch
from panoda.engine.task import Task


class PairTask(Task):
    """Each step sees a batch of either domain; a method adds its losses.

    Attributes:
        source: Labelled source batches from a step on.
        target: Target batches from a step on.
        device: Where to compute.
        lacking: Classes (B, K) that the sources of a source batch do not annotate, or None.
    """

    def __init__(
        self,
        model: Any,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        device: torch.device,
        lacking: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> None:
        """Train ``model``, a segmenter on ``device``."""
        self.lacking = lacking
        self.trained, self.source, self.target, self.device = model, source, target, device

    def batches(self, start_step: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of (source, target)."""
        return zip(self.source(start_step), self.target(start_step), strict=False)

    def describe(self, batch: tuple[Batch, Batch]) -> str:
        """Sample ids of both domains."""
        return "source " + ", ".join(batch[0]["ids"]) + "; target " + ", ".join(batch[1]["ids"])

    def unpack(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in 0..1, labels (B, H, W) and valid pixels (B, H, W) on the device."""
        image = batch["image"].to(self.device, non_blocking=True).float() / 255
        label, valid = (batch[name].to(self.device, non_blocking=True) for name in ("label", "valid"))
        return image, label, valid
