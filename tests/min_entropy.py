"""Entropy minimisation (Vu et al., CVPR 2019): a small method, as docs/extending.md adds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from panoda.config.section import NonNegative
from panoda.config.training import AugmentParams, MethodParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import cross_entropy
from panoda.engine.method import Method, Setup
from panoda.methods.parts.pairs import PairTask


class MinEntParams(MethodParams):
    """Supervised source loss, and confident predictions on the target."""

    method: Literal["min_entropy"] = "min_entropy"
    """This method."""
    entropy_weight: NonNegative = 0.001
    """Weight of the target's entropy."""
    augment_source: AugmentParams = AugmentParams()
    """Source augmentation."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation."""


class MinEntTask(PairTask):
    """CE(source) + weight * mean entropy of the target's predictions."""

    def __init__(
        self,
        model: torch.nn.Module,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        entropy_weight: float,
        device: torch.device,
    ) -> None:
        """Train ``model`` on pairs of batches."""
        super().__init__(model, source, target, device=device)
        self.entropy_weight = entropy_weight

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """Both terms and their sum."""
        (image, label, _), (target_image, _, _) = (self.unpack(part) for part in batch)
        ce = cross_entropy(self.trained(normalise(image)), label)
        probs = self.trained(normalise(target_image)).float().softmax(dim=1)
        entropy = -(probs * probs.clamp(min=1e-8).log()).sum(dim=1).mean()
        total = ce + self.entropy_weight * entropy
        return {"loss/total": total, "loss/source_ce": ce, "loss/entropy": entropy}


def task(setup: Setup) -> MinEntTask:
    """The task of a stage's run."""
    p = setup.params
    return MinEntTask(
        setup.model,
        setup.batches(setup.source, p.augment_source, domain="source"),
        setup.batches(setup.unlabelled, p.augment_target, domain="target"),
        entropy_weight=p.entropy_weight,
        device=setup.device,
    )


METHOD = Method(stage="adapt", params=MinEntParams, task=task)
