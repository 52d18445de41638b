"""Adversarial output alignment (AdaptSegNet, Tsai et al. 2018; the warm-up of Trans4PASS).

The discriminator tells source softmax maps (1) from target ones (0); the segmentation model is rewarded
when its target maps pass for source. Losses are binary cross-entropies averaged over all outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE, TARGET = 1.0, 0.0


class Adversary:
    """A discriminator with its own optimiser and both losses.

    The generator loss must not leave gradients in the discriminator, so the latter is frozen for it.
    """

    def __init__(self, discriminator: nn.Module, *, lr: float) -> None:
        """Use Adam with betas (0.9, 0.99) at ``lr``."""
        self.discriminator = discriminator
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.9, 0.99))

    def generator_loss(self, target_logits: Tensor) -> Tensor:
        """Loss of the segmentation model: target outputs should look like source. (B, K, H, W) -> scalar."""
        self.discriminator.requires_grad_(False)
        score = self.discriminator(target_logits.softmax(dim=1))
        self.discriminator.requires_grad_(True)
        return _bce(score, SOURCE)

    def step(self, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """One discriminator update on detached outputs; returns its loss (mean of both domains)."""
        self.optimizer.zero_grad(set_to_none=True)
        source = self.discriminator(source_logits.detach().float().softmax(dim=1))
        target = self.discriminator(target_logits.detach().float().softmax(dim=1))
        loss = (_bce(source, SOURCE) + _bce(target, TARGET)) / 2
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Outputs:
    """Outputs of a step, micro-batch by micro-batch, until the discriminator takes its own step on them."""

    def __init__(self) -> None:
        """None yet."""
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def keep(self, source_logits: Tensor, target_logits: Tensor) -> None:
        """Keep those of a micro-batch; a rehearsal without gradients starts a step anew and is not kept."""
        if torch.is_grad_enabled():
            self._pairs.append((source_logits.detach(), target_logits.detach()))
        else:
            self._pairs.clear()

    def take(self) -> tuple[Tensor, Tensor]:
        """Source and target logits of the whole step, which are forgotten here."""
        pairs, self._pairs = self._pairs, []
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([source for source, _ in pairs]), torch.cat([target for _, target in pairs])


def _bce(score: Tensor, value: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(
        score.float(), torch.full_like(score, value, dtype=torch.float32)
    )
