"""One step of mutual prototypical adaptation, the recipe of scenario ``cs2dp``, written plainly.

The same numbers as ``panoda.methods.self_training``: a test compares losses and gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = 255


class Discriminator(nn.Sequential):
    """Five 4x4 stride-2 convolutions with LeakyReLU 0.2."""

    def __init__(self, num_classes: int) -> None:
        """Build with random weights."""
        sizes, layers = (num_classes, 64, 128, 256, 512), []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(512, 1, 4, stride=2, padding=1))


def mpa(features: Tensor, label: Tensor, prototypes: Tensor, *, temperature: float, share: float) -> Tensor:
    """MPA of one domain with the released denominators; features (B, D, h, w), label (B, H, W)."""
    small = F.interpolate(label[:, None].float(), size=features.shape[2:], mode="nearest")[:, 0]
    target = features.detach().permute(0, 2, 3, 1).clone()
    for k in range(len(prototypes)):
        mask = small == k
        if mask.sum().item() > 0:
            target[mask] = prototypes[k]
    target = target.permute(0, 3, 1, 2)
    log_target = F.log_softmax(target / temperature, dim=1)
    log_feature = F.log_softmax(features / temperature, dim=1)
    soft = (log_target.exp() * (log_target - log_feature)).mean()  # over pixels and channels
    hard = F.cross_entropy(features, target.argmax(dim=1))
    return share * temperature**2 * soft + (1 - share) * hard


def class_means(features: Tensor, label: Tensor, num_classes: int) -> dict[int, Tensor]:
    """Mean feature of every class in a batch."""
    small = F.interpolate(label[:, None].float(), size=features.shape[2:], mode="nearest-exact")[:, 0]
    means = {}
    for k in range(num_classes):
        mask = small == k
        if mask.sum().item() > 0:
            means[k] = features.permute(0, 2, 3, 1)[mask].mean(dim=0)
    return means


class ReferenceStep:
    """Models, optimisers and what is collected for the prototypes."""

    def __init__(
        self, model: nn.Module, discriminator: nn.Module, prototypes: Tensor, weight: Tensor, *, lr: float
    ) -> None:
        """Start from given models, prototypes (K, D) and class weights (K,)."""
        self.model, self.discriminator = model, discriminator
        self.prototypes, self.weight = prototypes, weight
        self.collected: list[list[dict[int, Tensor]]] = [[], []]
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        self.adam = torch.optim.Adam(discriminator.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def __call__(
        self, image: Tensor, label: Tensor, target_image: Tensor, pseudo: Tensor
    ) -> dict[str, float]:
        """Normalised images (B, 3, H, W), labels (B, H, W) -> the losses, after one step of everything."""
        self.optimizer.zero_grad()
        logits, features = self.model(image)
        target_logits, target_features = self.model(target_image)
        losses = {
            "loss/source_ce": F.cross_entropy(logits, label, weight=self.weight, ignore_index=IGNORE),
            "loss/target_ce": F.cross_entropy(target_logits, pseudo, ignore_index=IGNORE),
        }
        total = losses["loss/source_ce"] + losses["loss/target_ce"]
        pairs = (("source", features, label), ("target", target_features, pseudo))
        for domain, (name, feature, ids) in enumerate(pairs):
            term = mpa(feature, ids, self.prototypes, temperature=20.0, share=0.9)
            losses[f"loss/mpa_{name}"] = term
            total = total + 0.001 * term
            self.collected[domain].append(class_means(feature.detach(), ids, len(self.prototypes)))
        for parameter in self.discriminator.parameters():
            parameter.requires_grad = False
        losses["loss/adversarial"] = _judged(self.discriminator, target_logits, 1.0)
        total = total + 0.001 * losses["loss/adversarial"]
        losses["loss/total"] = total
        total.backward()
        self.optimizer.step()
        for parameter in self.discriminator.parameters():
            parameter.requires_grad = True
        self.adam.zero_grad()
        source, target = logits.detach(), target_logits.detach()
        loss = (_judged(self.discriminator, source, 1.0) + _judged(self.discriminator, target, 0.0)) / 2
        loss.backward()
        self.adam.step()
        losses["loss/discriminator"] = loss
        return {name: value.item() for name, value in losses.items()}


def _judged(discriminator: nn.Module, logits: Tensor, wanted: float) -> Tensor:
    score = discriminator(F.softmax(logits, dim=1))
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, wanted))
