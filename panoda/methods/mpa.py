"""Mutual prototypical adaptation (MPA): self-training that pulls both domains' features to common prototypes.

Source: Trans4PASS (Zhang et al., CVPR 2022, arXiv 2203.01452), section 3.4.

Total = source_weight * CE(source) + target_weight * CE(target, pseudo-label) + alpha * (MPA source + MPA
target) + adversarial_weight * adversarial. The target cross-entropy is unweighted by class. Beyond the
paper, each with its own switch: an EMA teacher that relabels the target online (Tarvainen & Valpola 2017),
class-mix, colour transfer, pinholes warped onto the sphere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from safetensors.torch import save
from torch import Tensor

from panoda.config.section import NonNegative, Positive, Probability, Section
from panoda.config.training import AugmentParams, ClassWeightParams, MethodParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.pseudo import PseudoLabelSplit
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy, leave_out
from panoda.engine.method import Method, Setup
from panoda.engine.resume_points import Stateful
from panoda.engine.teacher import Teacher
from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.adversarial import Adversary, Outputs
from panoda.methods.parts.class_features import resize_label
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.mixing import (
    class_colour_transfer,
    class_mix_mask,
    colour_transfer,
    paste,
    photometric,
    place,
)
from panoda.methods.parts.pairs import PairTask
from panoda.methods.parts.prototypes import PrototypeBank, read_prototypes
from panoda.methods.parts.sphere_warp import Warp, warp_onto_sphere
from panoda.models.core.segmenter import Segmenter
from panoda.system.shares import denominator, rows


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


class TeacherParams(Section):
    """EMA teacher that relabels the target online, mixed with the stored pseudo-labels."""

    enabled: bool = True
    """Use a teacher; false = the stored pseudo-labels alone."""
    ema_momentum: Probability = 0.99
    """Share of the old teacher weights kept at each step."""
    threshold: Probability = 0.5
    """Online labels below this confidence are ignored."""


class MPAParams(MethodParams):
    """Self-training with pseudo-labels plus MPA; every extra part can be switched off."""

    method: Literal["mpa"] = "mpa"
    """This method."""
    source_weight: NonNegative = 1.0
    """Weight of the source cross-entropy."""
    target_weight: NonNegative = 1.0
    """Weight of the target cross-entropy (unweighted classes); 0 = off."""
    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights of the source loss."""
    mpa: PrototypeLossParams = PrototypeLossParams()
    """Prototype loss."""
    adversarial_weight: NonNegative = 0.0
    """Weight of the adversarial term of the released code; 0 = off."""
    discriminator_lr: Positive = 1e-4
    """Adam learning rate of the discriminator."""
    teacher: TeacherParams = TeacherParams()
    """EMA teacher."""
    class_mix: Probability = 0.5
    """Probability of pasting half the classes of a source image onto a target image."""
    colour_transfer: Probability = 0.8
    """Probability of giving a source image the colour mean and deviation of a target image."""
    class_colour_transfer: Probability = 0.0
    """Probability of doing so class by class after that, with the pseudo-labels of the target image."""
    erp_warp: Probability = 0.0
    """Probability of warping a pinhole source image onto the target's sphere."""
    augment_source: AugmentParams = AugmentParams()
    """Source augmentation."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation."""
    keep: Literal["student", "teacher"] = "teacher"
    """Which weights are the result (the teacher needs teacher.enabled)."""

    @model_validator(mode="after")
    def _keep(self) -> MPAParams:
        if self.keep == "teacher" and not self.teacher.enabled:
            raise ValueError("keep: teacher needs teacher.enabled: true")
        return self


def mpa_loss(
    features: Tensor,
    label: Tensor,
    prototypes: Tensor,
    seen: Tensor | None = None,
    *,
    temperature: float = 20.0,
    soft_share: float = 0.9,
    normaliser: Literal["released", "pixels"] = "pixels",
    left_out: Tensor | None = None,
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
        left_out: (B, H, W) bool, pixels of the other domain: they enter no sum and no denominator.

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
    own = torch.ones_like(has)
    if left_out is not None:
        own = resize_label(left_out.long(), size, corner=normaliser == "released").flatten() == 0
        has = has & own
    target = torch.where(has[:, None], prototypes.float()[slot], flat.detach())
    log_f = F.log_softmax(flat / temperature, dim=1)
    log_p = F.log_softmax(target / temperature, dim=1)
    soft = (log_p.exp() * (log_p - log_f)).sum(dim=1)  # (N,)
    hard = F.cross_entropy(flat, target.argmax(dim=1), reduction="none")  # (N,)
    scale = soft_share * temperature**2
    if normaliser == "released":
        return ((scale * soft / flat.shape[1] + (1 - soft_share) * hard) * own).sum() / denominator(own.sum())
    return ((scale * soft + (1 - soft_share) * hard) * has).sum() / denominator(has.sum())


class MPATask(PairTask):
    """One adaptation run."""

    def __init__(
        self,
        model: Segmenter,
        bank: PrototypeBank,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        params: MPAParams,
        weight: Tensor | None,
        adversary: Adversary | None,
        warp: Warp | None,
        device: torch.device,
        lacking: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> None:
        """Set up.

        Args:
            model: Student; starts as the warmed-up model.
            bank: Prototypes.
            source: Labelled source batches from a step on.
            target: Target batches with stored pseudo-labels from a step on, without colour augmentation.
            params: The adapt section.
            weight: (K,) class weights of the source loss.
            adversary: For the adversarial term, or None.
            warp: Lays source images onto the part of the sphere that target samples show, or None where it
                makes no sense.
            device: Where to compute.
            lacking: Classes (B, K) that the sources of a source batch do not annotate.
        """
        super().__init__(model, source, target, device=device, lacking=lacking)
        self.bank, self.adversary, self.warp = bank, adversary, warp
        self.params, self.weight = params, weight
        self._first = bank.prototypes.detach().cpu().clone()
        momentum = params.teacher.ema_momentum
        self.teacher = Teacher(model, momentum=momentum) if params.teacher.enabled else None
        self._outputs = Outputs()

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """All terms; those that are switched off are neither computed nor reported."""
        p = self.params
        image, label, valid = self.unpack(batch[0])
        target_image, target_label, target_valid = self.unpack(batch[1])
        values: dict[str, Tensor] = {}
        if self.teacher is not None and p.target_weight > 0:
            target_label = self._relabel(target_image, target_label, target_valid)
            kept = (target_label != IGNORE_INDEX).float().mean()
            values["teacher/kept_share"] = kept
        styled = colour_transfer(image, valid, target_image, target_valid, p.colour_transfer)
        styled = class_colour_transfer(styled, label, target_image, target_label, p.class_colour_transfer)
        student_image, student_label = target_image, target_label
        pasted = torch.zeros_like(target_valid)
        if p.class_mix > 0:
            placed, placed_label = self._placed(styled, label, batch)
            pasted = self._pasted(placed_label)
            student_image, student_label = paste(placed, placed_label, target_image, target_label, pasted)
        student_image = photometric(
            student_image,
            target_valid | pasted,
            jitter=p.augment_target.jitter,
            exposure=p.augment_target.exposure,
        )
        logits, features, auxiliary = self.trained(normalise(styled), return_auxiliary=True)
        lacking = self.lacking(batch[0])
        ce = cross_entropy(leave_out(logits, lacking), label, self.weight)
        values["loss/source_ce"] = ce
        total = p.source_weight * ce
        if auxiliary:
            values["loss/auxiliary"] = auxiliary_cross_entropy(auxiliary, label, self.weight, lacking=lacking)
            total = total + p.source_weight * values["loss/auxiliary"]
        if p.target_weight > 0 or p.mpa.weight > 0 or self.adversary is not None:
            target_logits, target_features = self.trained(normalise(student_image), return_features=True)
            total = total + self._target_terms(
                values,
                target_logits,
                target_features,
                student_label,
                pasted,
                features,
                label,
                lacking,
            )
            if self.adversary is not None:
                self._outputs.keep(logits, target_logits)
        values["loss/total"] = total
        return values

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Teacher EMA, prototype refresh, discriminator update."""
        values: dict[str, Tensor] = {}
        if self.teacher is not None:
            self.teacher.update_parameters(self.trained)
        if self.params.mpa.weight > 0 and (step + 1) % self.params.mpa.refresh_every == 0:
            self.bank.refresh()
        if self.adversary is not None:
            values["loss/discriminator"] = self.adversary.step(*self._outputs.take())
        return values

    def result(self) -> Segmenter:
        """The kept weights: the teacher's or the student's."""
        if self.params.keep == "teacher" and self.teacher is not None:
            return cast(Segmenter, self.teacher.module)
        return self.trained

    def components(self) -> dict[str, Stateful]:
        """Student, prototypes, and teacher and discriminator where there are any."""
        parts: dict[str, Stateful] = {"model": self.trained, "prototypes": self.bank}
        if self.teacher is not None:
            parts["teacher"] = self.teacher
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.discriminator
            parts["discriminator_optimizer"] = self.adversary.optimizer
        return parts

    def followers(self) -> list[Segmenter]:
        """The teacher."""
        return [] if self.teacher is None else [cast(Segmenter, self.teacher.module)]

    def metrics(self) -> dict[str, float]:
        """``prototypes/moved``: the mean distance that the prototypes moved."""
        distance = (self.bank.prototypes.cpu() - self._first).norm(dim=1)[self.bank.seen.cpu()]
        return {"prototypes/moved": float(distance.mean()) if distance.numel() else 0.0}

    def save(self, folder: Path) -> None:
        """The prototypes at the end."""
        tensors = {"mutual": self.bank.prototypes.cpu(), "seen": self.bank.seen.cpu()}
        # Not save_file: it reports a full disk as an error of its own kind.
        (folder / "prototypes.safetensors").write_bytes(save(tensors))

    @torch.no_grad()
    def _relabel(self, image: Tensor, stored: Tensor, valid: Tensor) -> Tensor:
        """The teacher's label where it is confident, the stored pseudo-label elsewhere."""
        assert self.teacher is not None
        confidence, online = self.teacher(normalise(image)).float().softmax(dim=1).max(dim=1)
        sure = (confidence >= self.params.teacher.threshold) & valid
        return torch.where(sure, online, stored)

    def _placed(self, image: Tensor, label: Tensor, batch: tuple[Batch, Batch]) -> tuple[Tensor, Tensor]:
        """Source images and labels where the target samples may show them, 255 elsewhere."""
        if self.warp is not None and bool(torch.rand(()) < self.params.erp_warp):
            return self.warp(image, label, *batch)
        return place(image, label, (batch[1]["image"].shape[-2], batch[1]["image"].shape[-1]))

    def _pasted(self, label: Tensor) -> Tensor:
        """(B, H, W) bool, True on the pixels of placed source images that are pasted."""
        mask = class_mix_mask(label)
        drawn = rows(lambda n: torch.rand(n, 1, 1, device=label.device), label.shape[0])
        return mask & (drawn < self.params.class_mix)

    def _target_terms(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        features: Tensor,
        label: Tensor,
        pasted: Tensor,
        source_features: Tensor,
        source_label: Tensor,
        lacking: Tensor | None,
    ) -> Tensor:
        p = self.params
        total = logits.new_zeros(())
        if p.target_weight > 0:
            values["loss/target_ce"] = cross_entropy(leave_out(logits, lacking, pasted), label)
            total = total + p.target_weight * values["loss/target_ce"]
        if p.mpa.weight > 0:
            # Pasted pixels are learned from, but show the source: they are no target features.
            own = label.masked_fill(pasted, IGNORE_INDEX)
            pairs = (
                ("source", source_features, source_label, None),
                ("target", features, own, pasted),
            )
            for domain, (name, feature, ids, left_out) in enumerate(pairs):
                values[f"loss/mpa_{name}"] = mpa_loss(
                    feature,
                    ids,
                    self.bank.prototypes,
                    self.bank.seen,
                    temperature=p.mpa.temperature,
                    soft_share=p.mpa.soft_share,
                    normaliser=p.mpa.normaliser,
                    left_out=left_out,
                )
                self.bank.collect(feature.detach(), ids, domain=domain)
                total = total + p.mpa.weight * values[f"loss/mpa_{name}"]
        if self.adversary is not None:
            values["loss/adversarial"] = self.adversary.generator_loss(logits)
            total = total + p.adversarial_weight * values["loss/adversarial"]
        return total


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
        setup.batches(target, p.augment_target, domain="target", colour=False),
        params=p,
        weight=setup.class_weights(p.class_weights),
        adversary=adversary,
        warp=warp_onto_sphere(source, unlabelled) if p.erp_warp > 0 else None,
        device=device,
        lacking=setup.lacking,
    )


METHOD = Method(stage="adapt", params=MPAParams, task=task)
