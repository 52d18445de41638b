"""Adversarial output alignment (AdaptSegNet, Tsai et al. 2018): the warm-up of Trans4PASS.

Supervised source loss plus a weight times the adversarial loss of target outputs.

Beyond the paper, source images may take on the colours of target images first (a switch of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from panoda.config.section import NonNegative, Positive, Probability
from panoda.config.training import AugmentParams, ClassWeightParams, MethodParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy, leave_out
from panoda.engine.method import Method, Setup
from panoda.engine.resume_points import Stateful
from panoda.methods.parts.adversarial import Adversary, Outputs
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.mixing import colour_transfer
from panoda.methods.parts.pairs import PairTask


class AlignmentParams(MethodParams):
    """Adversarial output alignment; 0 iterations passes the source model through."""

    method: Literal["alignment"] = "alignment"
    """This method."""
    discriminator_lr: Positive = 1e-4
    """Adam learning rate of the discriminator, betas (0.9, 0.99)."""
    adversarial_weight: NonNegative = 0.001
    """Weight of the adversarial loss."""
    colour_transfer: Probability = 0.0
    """Probability of giving a source image the colour mean and deviation of a target image."""
    augment_source: AugmentParams = AugmentParams()
    """Source augmentation."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation."""
    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights of the source loss."""


class AlignmentTask(PairTask):
    """Source cross-entropy + weight * adversarial loss; the discriminator steps after the model."""

    def __init__(
        self,
        model: Any,
        adversary: Adversary,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        weight: Tensor | None,
        adversarial_weight: float,
        colour_transfer: float,
        device: torch.device,
        lacking: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> None:
        """Train ``model`` on pairs of source and target batches; target labels are never read.

        ``lacking`` says which classes (B, K) the sources of a batch do not annotate.
        """
        super().__init__(model, source, target, device=device, lacking=lacking)
        self.adversary = adversary
        self.weight = weight
        self.adversarial_weight = adversarial_weight
        self.colour_transfer = colour_transfer
        self._outputs = Outputs()

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """Source cross-entropy, adversarial loss and their weighted sum."""
        source_image, label, source_valid = self.unpack(batch[0])
        target_image, _, target_valid = self.unpack(batch[1])
        styled = colour_transfer(source_image, source_valid, target_image, target_valid, self.colour_transfer)
        source_logits, _, auxiliary = self.trained(normalise(styled), return_auxiliary=True)
        target_logits = self.trained(normalise(target_image))
        lacking = self.lacking(batch[0])
        ce = cross_entropy(leave_out(source_logits, lacking), label, self.weight)
        adversarial = self.adversary.generator_loss(target_logits)
        self._outputs.keep(source_logits, target_logits)
        values = {
            "loss/total": ce + self.adversarial_weight * adversarial,
            "loss/source_ce": ce,
            "loss/adversarial": adversarial,
        }
        if auxiliary:
            values["loss/auxiliary"] = auxiliary_cross_entropy(auxiliary, label, self.weight, lacking=lacking)
            values["loss/total"] = values["loss/total"] + values["loss/auxiliary"]
        return values

    def after_step(self, step: int) -> dict[str, Tensor]:
        """One discriminator update on the outputs of this step."""
        return {"loss/discriminator": self.adversary.step(*self._outputs.take())}

    def components(self) -> dict[str, Stateful]:
        """Model, discriminator and its optimiser."""
        return {
            "model": self.trained,
            "discriminator": self.adversary.discriminator,
            "discriminator_optimizer": self.adversary.optimizer,
        }


def task(setup: Setup) -> AlignmentTask:
    """The task of a stage's run."""
    p: AlignmentParams = setup.params
    discriminator = Discriminator(setup.source.num_classes).to(setup.device)
    return AlignmentTask(
        setup.model,
        Adversary(discriminator, lr=p.discriminator_lr),
        setup.batches(setup.source, p.augment_source, domain="source"),
        setup.batches(setup.unlabelled, p.augment_target, domain="target"),
        weight=setup.class_weights(p.class_weights),
        adversarial_weight=p.adversarial_weight,
        colour_transfer=p.colour_transfer,
        device=setup.device,
        lacking=setup.lacking,
    )


METHOD = Method(stage="warmup", params=AlignmentParams, task=task)
