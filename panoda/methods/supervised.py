"""Supervised training on labelled images: the source stage and the oracle of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.averaging import WeightAverage
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy, ohem_cross_entropy
from panoda.engine.resume_points import Stateful


class SupervisedTask:
    """Cross-entropy; class weights, hard example mining and label smoothing when asked for."""

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Iterator[Batch]],
        *,
        weight: Tensor | None,
        ohem: tuple[float, float] | None,
        device: torch.device,
        label_smoothing: float = 0.0,
        average: WeightAverage | None = None,
    ) -> None:
        """Train ``model`` on ``batches(start_step)``; ``ohem`` is (threshold, min_kept) or None."""
        self.trained = model
        self.batches = batches
        self.weight = weight
        self.ohem = ohem
        self.device = device
        self.label_smoothing = label_smoothing
        self.average = average

    def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """``loss/source_ce``, ``loss/auxiliary`` where the decoder has auxiliary heads, and their sum."""
        image = normalise(batch["image"].to(self.device, non_blocking=True))
        logits, _, auxiliary = self.trained(image, return_auxiliary=True)
        label = batch["label"].to(self.device, non_blocking=True)
        common: dict[str, Any] = {"weight": self.weight, "label_smoothing": self.label_smoothing}
        if self.ohem is None:
            loss = cross_entropy(logits, label, **common)
        else:
            loss = ohem_cross_entropy(logits, label, threshold=self.ohem[0], min_kept=self.ohem[1], **common)
        if not auxiliary:
            return {"loss/total": loss, "loss/source_ce": loss}
        extra = auxiliary_cross_entropy(auxiliary, label, **common)
        return {"loss/total": loss + extra, "loss/source_ce": loss, "loss/auxiliary": extra}

    def after_step(self, step: int) -> dict[str, Tensor]:
        """The averaged weights follow the model."""
        if self.average is not None:
            self.average.after_step(step)
        return {}

    def describe(self, batch: Batch) -> str:
        """Sample ids."""
        return ", ".join(batch["ids"])

    def components(self) -> dict[str, Stateful]:
        """The model and its averaged weights."""
        average = {} if self.average is None else {"average": self.average.averaged}
        return {"model": self.trained, **average}
