"""Mutual prototypical adaptation (MPA): self-training that pulls both domains' features to common prototypes.

Source: Trans4PASS (Zhang et al., CVPR 2022, arXiv 2203.01452), section 3.4.

Total = CE(source) + target_weight * CE(target, pseudo-label) + alpha * (MPA source + MPA target)
+ adversarial_weight * adversarial. The target cross-entropy is not weighted by class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from panoda.config.section import NonNegative, Positive, Probability, Section
from panoda.data.loading.loader import Batch
from panoda.data.loading.pseudo import PseudoLabelSplit
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import cross_entropy
from panoda.engine.method import Method, Setup
from panoda.engine.resume_points import Stateful
from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.adversarial import Adversary, Outputs
from panoda.methods.parts.class_features import resize_label
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.pairs import PairParams, PairTask
from panoda.methods.parts.prototypes import PrototypeBank, read_prototypes
from panoda.system.shares import denominator


class PrototypeLossParams(Section):
    """The prototype loss."""

    weight: NonNegative = 0.001
    """alpha; 0 = off."""
    temperature: Positive = 20.0
    """T of the softened distributions."""
    soft_share: Probability = 0.9
    """lambda: share of the KL term; the rest is the hard term."""
    normaliser: Literal["released", "pixels"] = "pixels"
    """released = mean over pixels and channels, ignored pixels included; pixels = KL summed over
    channels, mean over labelled pixels (as the paper's equation reads)."""
    ema_momentum: Probability = 0.999
    """Share of the old prototype kept at each refresh."""
    refresh_every: Annotated[int, Field(ge=1)] = 100
    """Steps between EMA refreshes."""


class MPAParams(PairParams):
    """Self-training with pseudo-labels plus MPA, as published."""

    method: Literal["mpa"] = "mpa"
    """This method."""
    target_weight: NonNegative = 1.0
    """Weight of the target cross-entropy; 0 = off."""
    mpa: PrototypeLossParams = PrototypeLossParams()
    """Prototype loss."""
    adversarial_weight: NonNegative = 0.0
    """Weight of the adversarial term of the released code; 0 = off."""
    discriminator_lr: Positive = 1e-4
    """Adam learning rate of the discriminator."""


def mpa_loss(
    features: Tensor,
    label: Tensor,
    prototypes: Tensor,
    seen: Tensor | None = None,
    *,
    temperature: float = 20.0,
    soft_share: float = 0.9,
    normaliser: Literal["released", "pixels"] = "pixels",
) -> Tensor:
    """The MPA feature loss of one domain (eq. 7-9).

    Per labelled pixel with feature f and prototype p of its (pseudo-)label:
    ``soft_share * T^2 * KL(softmax(p / T) || softmax(f / T)) + (1 - soft_share) * CE(f, argmax p)``.

    Denominators. ``pixels``: KL summed over channels and hard term, both averaged over the pixels whose
    label has a prototype; other pixels count nowhere. ``released``: KL averaged over all pixels AND
    channels, hard term over all pixels; pixels without a prototype are their own targets, so they add
    nothing to the KL and a self-training term to the hard part (this is what the released code computes).

    Args:
        features: (B, D, h, w).
        label: (B, H, W) int64, 255 = ignored; resized to (h, w) by nearest neighbour.
        prototypes: (K, D).
        seen: (K,) bool, False for classes without a prototype; None = all seen.
        temperature: T.
        soft_share: lambda, in 0..1.
        normaliser: see above.

    Returns:
        Scalar; 0 when no pixel has a prototype (``pixels``).
    """
    size = (features.shape[-2], features.shape[-1])
    small = resize_label(label, size, corner=normaliser == "released").flatten()
    flat = features.float().permute(0, 2, 3, 1).flatten(0, 2)  # (N, D)
    has = small != IGNORE_INDEX
    slot = torch.where(has, small, torch.zeros_like(small))
    if seen is not None:
        has = has & seen[slot]
    target = torch.where(has[:, None], prototypes.float()[slot], flat.detach())
    log_f = F.log_softmax(flat / temperature, dim=1)
    log_p = F.log_softmax(target / temperature, dim=1)
    soft = (log_p.exp() * (log_p - log_f)).sum(dim=1)  # (N,)
    hard = F.cross_entropy(flat, target.argmax(dim=1), reduction="none")  # (N,)
    scale = soft_share * temperature**2
    if normaliser == "released":
        terms = scale * soft / flat.shape[1] + (1 - soft_share) * hard
        return terms.sum() / denominator(torch.ones_like(terms).sum())
    return ((scale * soft + (1 - soft_share) * hard) * has).sum() / denominator(has.sum())


class MPATask(PairTask):
    """One adaptation run."""

    def __init__(
        self,
        model: Any,
        bank: PrototypeBank,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        params: MPAParams,
        adversary: Adversary | None,
        **common: Any,
    ) -> None:
        """Set up.

        Args:
            model: Starts as the warmed-up model.
            bank: Prototypes.
            source: Labelled source batches from a step on.
            target: Target batches with stored pseudo-labels from a step on.
            params: The adapt section.
            adversary: For the adversarial term, or None.
            common: As in ``PairTask``.
        """
        super().__init__(model, source, target, **common)
        self.params, self.bank, self.adversary = params, bank, adversary
        self._first = bank.prototypes.detach().cpu().clone()
        self._outputs = Outputs()

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """All terms; those that are switched off are neither computed nor reported."""
        p = self.params
        values: dict[str, Tensor] = {}
        image, label, _ = self.unpack(batch[0])
        total, logits, features = self.source_losses(values, image, label, self.lacking(batch[0]))
        if p.target_weight > 0 or p.mpa.weight > 0 or self.adversary is not None:
            image, pseudo_label, _ = self.unpack(batch[1])
            target_logits, target_features = self.trained(normalise(image), return_features=True)
            if p.target_weight > 0:
                values["loss/target_ce"] = cross_entropy(target_logits, pseudo_label)
                total = total + p.target_weight * values["loss/target_ce"]
            if p.mpa.weight > 0:
                values["loss/mpa_source"] = self._mpa(features, label, domain=0)
                values["loss/mpa_target"] = self._mpa(target_features, pseudo_label, domain=1)
                total = total + p.mpa.weight * (values["loss/mpa_source"] + values["loss/mpa_target"])
            if self.adversary is not None:
                values["loss/adversarial"] = self.adversary.generator_loss(target_logits)
                total = total + p.adversarial_weight * values["loss/adversarial"]
                self._outputs.keep(logits, target_logits)
        return {**values, "loss/total": total}

    def _mpa(self, features: Tensor, label: Tensor, *, domain: int) -> Tensor:
        """The prototype loss of a domain, whose class means the bank then collects."""
        p = self.params.mpa
        loss = mpa_loss(
            features,
            label,
            self.bank.prototypes,
            self.bank.seen,
            temperature=p.temperature,
            soft_share=p.soft_share,
            normaliser=p.normaliser,
        )
        self.bank.collect(features.detach(), label, domain=domain)
        return loss

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Prototype refresh, discriminator update."""
        values: dict[str, Tensor] = {}
        if self.params.mpa.weight > 0 and (step + 1) % self.params.mpa.refresh_every == 0:
            self.bank.refresh()
        if self.adversary is not None:
            values["loss/discriminator"] = self.adversary.step(*self._outputs.take())
        return values

    def components(self) -> dict[str, Stateful]:
        """Model, prototypes, and the discriminator where there is one."""
        parts: dict[str, Stateful] = {"model": self.trained, "prototypes": self.bank}
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.discriminator
            parts["discriminator_optimizer"] = self.adversary.optimizer
        return parts

    def metrics(self) -> dict[str, float]:
        """``prototypes/moved``: the mean distance that the prototypes moved."""
        distance = (self.bank.prototypes.cpu() - self._first).norm(dim=1)[self.bank.seen.cpu()]
        return {"prototypes/moved": float(distance.mean()) if distance.numel() else 0.0}

    def save(self, folder: Path) -> None:
        """The prototypes at the end."""
        tensors = {"mutual": self.bank.prototypes.cpu(), "seen": self.bank.seen.cpu()}
        # Not save_file: it reports a full disk as an error of its own kind.
        (folder / "prototypes.safetensors").write_bytes(save(tensors))


def task(setup: Setup) -> MPATask:
    """The task of a stage's run: prototypes and pseudo-labels are those of the stages before."""
    p: MPAParams = setup.params
    source, unlabelled, device = setup.source, setup.unlabelled, setup.device
    target = PseudoLabelSplit(unlabelled, setup.folder("pseudo_labels"))
    mean, seen = read_prototypes(
        setup.folder("prototypes"), num_classes=source.num_classes, dim=setup.model.feature_channels
    )
    adversary = None
    if p.adversarial_weight > 0:
        adversary = Adversary(Discriminator(source.num_classes).to(device), lr=p.discriminator_lr)
    return MPATask(
        setup.model,
        PrototypeBank(mean, seen, ema_momentum=p.mpa.ema_momentum).to(device),
        setup.batches(source, p.augment_source, domain="source"),
        setup.batches(target, p.augment_target, domain="target"),
        params=p,
        adversary=adversary,
        weight=setup.class_weights(p.class_weights),
        device=device,
        lacking=setup.lacking,
    )


METHOD = Method(stage="adapt", params=MPAParams, task=task)
