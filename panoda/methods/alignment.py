"""Adversarial output alignment (AdaptSegNet, Tsai et al. 2018): the warm-up of Trans4PASS.

Supervised source loss plus a weight times the adversarial loss of target outputs.

Beyond the paper, source images may take on the colours of target images first (a switch of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor

from panoda.config.section import NonNegative, Positive, Probability
from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.method import Method, Setup
from panoda.engine.resume_points import Stateful
from panoda.methods.parts.adversarial import Adversary, Outputs
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.mixing import colour_transfer
from panoda.methods.parts.pairs import PairParams, PairTask


class AlignmentParams(PairParams):
    """Adversarial output alignment; 0 iterations passes the source model through."""

    method: Literal["alignment"] = "alignment"
    """This method."""
    discriminator_lr: Positive = 1e-4
    """Adam learning rate of the discriminator, betas (0.9, 0.99)."""
    adversarial_weight: NonNegative = 0.001
    """Weight of the adversarial loss."""
    colour_transfer: Probability = 0.0
    """Probability of giving a source image the colour mean and deviation of a target image."""


class AlignmentTask(PairTask):
    """Source cross-entropy + weight * adversarial loss; the discriminator steps after the model."""

    def __init__(
        self,
        model: Any,
        adversary: Adversary,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        adversarial_weight: float,
        colour_transfer: float,
        **common: Any,
    ) -> None:
        """Train ``model`` on pairs of source and target batches; target labels are never read.

        ``common`` as in ``PairTask``.
        """
        super().__init__(model, source, target, **common)
        self.adversary = adversary
        self.adversarial_weight = adversarial_weight
        self.colour_transfer = colour_transfer
        self._outputs = Outputs()

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """Source cross-entropy, adversarial loss and their weighted sum."""
        source_image, label, source_valid = self.unpack(batch[0])
        target_image, _, target_valid = self.unpack(batch[1])
        styled = colour_transfer(source_image, source_valid, target_image, target_valid, self.colour_transfer)
        values: dict[str, Tensor] = {}
        total, source_logits, _ = self.source_losses(values, styled, label, self.lacking(batch[0]))
        target_logits = self.trained(normalise(target_image))
        values["loss/adversarial"] = self.adversary.generator_loss(target_logits)
        self._outputs.keep(source_logits, target_logits)
        values["loss/total"] = total + self.adversarial_weight * values["loss/adversarial"]
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
