"""Tasks on pairs of source and target batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from panoda.config.training import AugmentParams, ClassWeightParams, MethodParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy, leave_out
from panoda.engine.task import Task


class PairParams(MethodParams):
    """What every method has that trains on labelled source and unlabelled target images."""

    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights of the source loss."""
    augment_source: AugmentParams = AugmentParams()
    """Source augmentation."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation."""


class PairTask(Task):
    """Each step sees a batch of either domain; a method adds its losses.

    Attributes:
        source: Labelled source batches from a step on.
        target: Target batches from a step on.
        weight: (K,) class weights of the source loss, or None.
        device: Where to compute.
        lacking: Classes (B, K) that the sources of a source batch do not annotate, or None.
    """

    def __init__(
        self,
        model: Any,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        weight: Tensor | None = None,
        device: torch.device,
        lacking: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> None:
        """Train ``model``, a segmenter on ``device``."""
        self.lacking, self.weight = lacking, weight
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

    def source_losses(
        self, values: dict[str, Tensor], image: Tensor, label: Tensor, lacking: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The supervised loss of a source batch, auxiliary heads included; its terms go into ``values``.

        Args:
            values: Named losses of the step.
            image: (B, 3, H, W) in 0..1.
            label: (B, H, W) int64, 255 = ignored.
            lacking: As in ``leave_out``.

        Returns:
            Loss (scalar), logits (B, K, H, W), features (B, D, h, w).
        """
        logits, features, auxiliary = self.trained(normalise(image), return_auxiliary=True)
        total = cross_entropy(leave_out(logits, lacking), label, self.weight)
        values["loss/source_ce"] = total
        if auxiliary:
            values["loss/auxiliary"] = auxiliary_cross_entropy(auxiliary, label, self.weight, lacking=lacking)
            total = total + values["loss/auxiliary"]
        return total, logits, features
