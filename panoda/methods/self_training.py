"""The adaptation task: self-training with pseudo-labels and mutual prototypes, plus what helps it.

Total = source_weight * CE(source) + target_weight * CE(target, pseudo-label) + alpha * (MPA source + MPA
target) + adversarial_weight * adversarial. The target cross-entropy is unweighted by class. Beyond the
paper, each with its own switch: an EMA teacher that relabels the target online (Tarvainen & Valpola 2017),
class-mix, colour transfer, pinholes warped onto the sphere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from panoda.config import AdaptParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy
from panoda.engine.resume_points import Stateful
from panoda.engine.teacher import Teacher
from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.adversarial import Adversary, Outputs
from panoda.methods.parts.mixing import (
    class_colour_transfer,
    class_mix_mask,
    colour_transfer,
    paste,
    photometric,
    place,
)
from panoda.methods.parts.mpa import mpa_loss
from panoda.methods.parts.prototypes import PrototypeBank
from panoda.models.core.segmenter import Segmenter
from panoda.system.shares import rows

Warp = Callable[[Tensor, Tensor, Batch, Batch], tuple[Tensor, Tensor]]
"""Source images and labels, the batches of source and target -> images and labels of the target's size."""


class SelfTrainingTask:
    """One adaptation run; the result is ``result()``."""

    def __init__(
        self,
        model: Segmenter,
        bank: PrototypeBank,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        params: AdaptParams,
        weight: Tensor | None,
        adversary: Adversary | None,
        warp: Warp | None,
        device: torch.device,
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
        """
        self.trained, self.bank, self.adversary, self.warp = model, bank, adversary, warp
        self.source, self.target = source, target
        self.params, self.weight, self.device = params, weight, device
        momentum = params.teacher.ema_momentum
        self.teacher = Teacher(model, momentum=momentum) if params.teacher.enabled else None
        self._outputs = Outputs()

    def batches(self, start_step: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of (source, target)."""
        return zip(self.source(start_step), self.target(start_step), strict=False)

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """All terms; those that are switched off are neither computed nor reported."""
        p = self.params
        image, label, valid = self._unpack(batch[0])
        target_image, target_label, target_valid = self._unpack(batch[1])
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
        ce = cross_entropy(logits, label, self.weight)
        values["loss/source_ce"] = ce
        total = p.source_weight * ce
        if auxiliary:
            values["loss/auxiliary"] = auxiliary_cross_entropy(auxiliary, label, self.weight)
            total = total + p.source_weight * values["loss/auxiliary"]
        if p.target_weight > 0 or p.mpa.weight > 0 or self.adversary is not None:
            target_logits, target_features = self.trained(normalise(student_image), return_features=True)
            total = total + self._target_terms(
                values, target_logits, target_features, student_label, pasted, features, label
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

    def describe(self, batch: tuple[Batch, Batch]) -> str:
        """Sample ids of both domains."""
        return "source " + ", ".join(batch[0]["ids"]) + "; target " + ", ".join(batch[1]["ids"])

    def components(self) -> dict[str, Stateful]:
        """Student, prototypes, and teacher and discriminator where there are any."""
        parts: dict[str, Stateful] = {"model": self.trained, "prototypes": self.bank}
        if self.teacher is not None:
            parts["teacher"] = self.teacher
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.discriminator
            parts["discriminator_optimizer"] = self.adversary.optimizer
        return parts

    def _unpack(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Image in 0..1, label and valid mask on the device."""
        image = batch["image"].to(self.device, non_blocking=True).float() / 255
        label, valid = (batch[name].to(self.device, non_blocking=True) for name in ("label", "valid"))
        return image, label, valid

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
    ) -> Tensor:
        p = self.params
        total = logits.new_zeros(())
        if p.target_weight > 0:
            values["loss/target_ce"] = cross_entropy(logits, label)
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
