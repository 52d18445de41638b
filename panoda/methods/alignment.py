"""The warm-up task: supervised source loss plus adversarial alignment of target outputs.

Beyond the paper, source images may take on the colours of target images first (a switch of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy
from panoda.engine.resume_points import Stateful
from panoda.methods.parts.adversarial import Adversary, Outputs
from panoda.methods.parts.mixing import colour_transfer


class AlignmentTask:
    """Source cross-entropy + weight * adversarial loss; the discriminator steps after the model."""

    def __init__(
        self,
        model: nn.Module,
        adversary: Adversary,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        weight: Tensor | None,
        adversarial_weight: float,
        colour_transfer: float,
        device: torch.device,
    ) -> None:
        """Train ``model`` on pairs of source and target batches; target labels are never read."""
        self.trained = model
        self.adversary = adversary
        self.source, self.target = source, target
        self.weight = weight
        self.adversarial_weight = adversarial_weight
        self.colour_transfer = colour_transfer
        self.device = device
        self._outputs = Outputs()

    def batches(self, start_step: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of (source, target)."""
        return zip(self.source(start_step), self.target(start_step), strict=False)

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """Source cross-entropy, adversarial loss and their weighted sum."""
        source, target = batch
        (source_image, source_valid), (target_image, target_valid) = (
            (
                b["image"].to(self.device, non_blocking=True).float() / 255,
                b["valid"].to(self.device, non_blocking=True),
            )
            for b in (source, target)
        )
        styled = colour_transfer(source_image, source_valid, target_image, target_valid, self.colour_transfer)
        source_logits, _, auxiliary = self.trained(normalise(styled), return_auxiliary=True)
        target_logits = self.trained(normalise(target_image))
        label = source["label"].to(self.device, non_blocking=True)
        ce = cross_entropy(source_logits, label, self.weight)
        adversarial = self.adversary.generator_loss(target_logits)
        self._outputs.keep(source_logits, target_logits)
        values = {
            "loss/total": ce + self.adversarial_weight * adversarial,
            "loss/source_ce": ce,
            "loss/adversarial": adversarial,
        }
        if auxiliary:
            values["loss/auxiliary"] = auxiliary_cross_entropy(auxiliary, label, self.weight)
            values["loss/total"] = values["loss/total"] + values["loss/auxiliary"]
        return values

    def after_step(self, step: int) -> dict[str, Tensor]:
        """One discriminator update on the outputs of this step."""
        return {"loss/discriminator": self.adversary.step(*self._outputs.take())}

    def describe(self, batch: tuple[Batch, Batch]) -> str:
        """Sample ids of both domains."""
        return "source " + ", ".join(batch[0]["ids"]) + "; target " + ", ".join(batch[1]["ids"])

    def components(self) -> dict[str, Stateful]:
        """Model, discriminator and its optimiser."""
        return {
            "model": self.trained,
            "discriminator": self.adversary.discriminator,
            "discriminator_optimizer": self.adversary.optimizer,
        }
