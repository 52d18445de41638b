"""Source-free adaptation: a trained model and unlabelled target images, no source image.

The stored pseudo-labels of stage pseudo_labels, with a threshold for each class, are the anchor that keeps rare classes
alive; where a mean teacher (Tarvainen and Valpola 2017) is sure, its label takes their place. Half the classes of
one target image are pasted onto another (class-mix: Olsson et al. 2021), at a random azimuth, and the colours of
the mixed image change at random: CE(mixed). On demand some images first take on the colours of the source. The result
is the teacher, or a mean of its weights and the source model's, which forgets less (Wortsman et al. 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from panoda.config.section import NonNegative, Probability
from panoda.config.training import AugmentParams, MethodParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.pseudo import PseudoLabelSplit
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import cross_entropy
from panoda.engine.method import Method, Setup
from panoda.engine.teacher import Teacher
from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.mixing import class_mix_mask, paste, photometric, place
from panoda.methods.parts.teacher_kept import TeacherKept
from panoda.models.core.colours import in_source_colours
from panoda.models.core.segmenter import Segmenter
from panoda.system.shares import rows


class SourceFreeParams(MethodParams):
    """A mean teacher on mixed target images; no source image is read."""

    method: Literal["source_free"] = "source_free"
    """This method."""
    ema_momentum: Probability = 0.99
    """Share of the old teacher weights kept at each step."""
    threshold: Probability = 0.8
    """Where the teacher is at least so confident its label counts, elsewhere the stored pseudo-label."""
    source_colours: NonNegative = 0.0
    """Weight of what the teacher says of the image in the colours that the source model learned from, beside 1
    for the image as it is; 0 = off."""
    recolour: Probability = 0.0
    """Probability that the student sees an image in the colours that the source model learned from."""
    source_share: Probability = 0.0
    """Share of the source model's weights in the result; the rest are the teacher's."""
    class_mix: Probability = 0.5
    """Probability of pasting half the classes of another target image onto a target image."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation; jitter and exposure change the student's image alone."""


class SourceFreeTask(TeacherKept):
    """One adaptation run."""

    def __init__(
        self,
        model: Segmenter,
        target: Callable[[int], Iterator[Batch]],
        *,
        params: SourceFreeParams,
        device: torch.device,
    ) -> None:
        """Train ``model`` on target batches with stored pseudo-labels, without colour augmentation."""
        self.trained, self.target, self.params, self.device = model, target, params, device
        self.teacher = Teacher(model, momentum=params.ema_momentum)
        self.start = copy.deepcopy(model).requires_grad_(False) if params.source_share > 0 else None

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Target batches."""
        return self.target(start_step)

    def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy of mixed images, and the share of pixels with a label."""
        image = batch["image"].to(self.device, non_blocking=True).float() / 255
        stored, valid = (batch[name].to(self.device, non_blocking=True) for name in ("label", "valid"))
        p, recoloured = self.params, image
        if p.source_colours > 0 or p.recolour > 0:
            recoloured = in_source_colours(self.teacher.module, image, valid)
        versions = [(p.source_colours, recoloured)] if p.source_colours > 0 else []
        label = self.teacher.relabel(image, stored, valid, p.threshold, versions=versions)
        image = torch.where(self._drawn(image, p.recolour)[:, None], recoloured, image)
        size = (image.shape[-2], image.shape[-1])
        other, other_label = place(image.roll(1, dims=0), label.roll(1, dims=0), size)
        pasted = class_mix_mask(other_label) & self._drawn(label, p.class_mix)
        mixed, mixed_label = paste(other, other_label, image, label, pasted)
        colours = p.augment_target
        mixed = photometric(mixed, valid | pasted, jitter=colours.jitter, exposure=colours.exposure)
        loss = cross_entropy(self.trained(normalise(mixed)), mixed_label)
        kept = (label != IGNORE_INDEX).float().mean()
        return {"loss/total": loss, "loss/target_ce": loss, "teacher/kept_share": kept}

    def result(self) -> Segmenter:
        """The teacher, with the source model's share."""
        return super().result() if self.start is None else self._averaged

    @cached_property
    def _averaged(self) -> Segmenter:
        """The source model, moved towards the teacher."""
        assert self.start is not None
        teacher = self.teacher.module.state_dict()
        for name, value in self.start.state_dict().items():
            if value.is_floating_point():
                value.lerp_(teacher[name], 1 - self.params.source_share)
        return self.start

    def followers(self) -> list[Segmenter]:
        """The teacher and the source model."""
        return super().followers() + ([] if self.start is None else [self.start])

    def _drawn(self, batch: Tensor, probability: float) -> Tensor:
        """(B, 1, 1) bool: True with ``probability`` for each image."""
        return rows(lambda n: torch.rand(n, 1, 1, device=batch.device), batch.shape[0]) < probability


def task(setup: Setup) -> SourceFreeTask:
    """The task of a stage's run; the pseudo-labels are those of the stage before."""
    p: SourceFreeParams = setup.params
    target = PseudoLabelSplit(setup.unlabelled, setup.folder("pseudo_labels"))
    batches = setup.batches(target, p.augment_target, domain="target", colour=False)
    return SourceFreeTask(setup.model, batches, params=p, device=setup.device)


METHOD = Method(stage="adapt", params=SourceFreeParams, task=task)
