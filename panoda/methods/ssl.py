"""Self-training on stored pseudo-labels: the SSL step of Trans4PASS (Zhang et al., CVPR 2022, arXiv 2203.01452).

Total = CE(source, label) + target_weight * CE(target, pseudo-label); the target term is not weighted by class.
With ``target_weight: 0`` it is the control: more steps on the source, and no target image is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor

from panoda.config.section import NonNegative
from panoda.data.loading.loader import Batch
from panoda.data.loading.pseudo import PseudoLabelSplit
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import cross_entropy
from panoda.engine.method import Method, Setup
from panoda.methods.parts.pairs import PairParams, PairTask


class SSLParams(PairParams):
    """Self-training on stored pseudo-labels."""

    method: Literal["ssl"] = "ssl"
    """This method."""
    target_weight: NonNegative = 1.0
    """Weight of the target cross-entropy; 0 = more training on the source (the control)."""


class SSLTask(PairTask):
    """A cross-entropy for each domain."""

    def __init__(
        self,
        model: Any,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        target_weight: float,
        **common: Any,
    ) -> None:
        """``common`` as in ``PairTask``."""
        super().__init__(model, source, target, **common)
        self.target_weight = target_weight

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """The two terms and their sum."""
        values: dict[str, Tensor] = {}
        image, label, _ = self.unpack(batch[0])
        total, _, _ = self.source_losses(values, image, label, self.lacking(batch[0]))
        if self.target_weight > 0:
            image, pseudo_label, _ = self.unpack(batch[1])
            values["loss/target_ce"] = cross_entropy(self.trained(normalise(image)), pseudo_label)
            total = total + self.target_weight * values["loss/target_ce"]
        return {**values, "loss/total": total}


def task(setup: Setup) -> SSLTask:
    """The task of a stage's run; the pseudo-labels are those of the stage before."""
    p: SSLParams = setup.params
    target = PseudoLabelSplit(setup.unlabelled, setup.folder("pseudo_labels"))
    return SSLTask(
        setup.model,
        setup.batches(setup.source, p.augment_source, domain="source"),
        setup.batches(target, p.augment_target, domain="target"),
        target_weight=p.target_weight,
        weight=setup.class_weights(p.class_weights),
        device=setup.device,
        lacking=setup.lacking,
    )


METHOD = Method(stage="adapt", params=SSLParams, task=task)
