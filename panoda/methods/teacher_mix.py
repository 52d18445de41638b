"""Self-training with a mean teacher on mixed images: the default method of stage adapt.

Each step:

- The teacher, an exponential moving average of the student (Tarvainen and Valpola 2017), labels the target image, as it
  is and, on demand, in the colours of the source, where the model is at home.
- Source images take on its colours, as a whole (Reinhard et al. 2001) and class by class. Half of their classes are
  pasted onto it (class-mix: Olsson et al. 2021; DACS: Tranheden et al. 2021), warped onto the sphere as the
  panorama's camera would see them.
- The mixed image may be tilted, which the teacher does not see.
- The student learns from both: CE(source) + target_weight * CE(mixed).

The teacher is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from panoda.config.section import Count, NonNegative, Probability
from panoda.data.loading.loader import Batch
from panoda.data.loading.pseudo import PseudoLabelSplit
from panoda.data.loading.transforms import normalise
from panoda.engine.losses import cross_entropy, leave_out
from panoda.engine.method import Method, Setup
from panoda.engine.teacher import Teacher
from panoda.labels import IGNORE_INDEX
from panoda.methods.parts.mixing import (
    class_colour_transfer,
    class_mix_mask,
    colour_transfer,
    paste,
    photometric,
    place,
)
from panoda.methods.parts.pairs import PairParams, PairTask
from panoda.methods.parts.sphere_warp import Warp, warp_onto_sphere
from panoda.methods.parts.teacher_kept import TeacherKept
from panoda.methods.parts.tilt import Tilt
from panoda.models.core.colours import in_source_colours
from panoda.models.core.segmenter import Segmenter
from panoda.system.shares import rows


class TeacherMixParams(PairParams):
    """Mean teacher, colour transfer and class-mix on the sphere."""

    method: Literal["teacher_mix"] = "teacher_mix"
    """This method."""
    target_weight: NonNegative = 1.0
    """Weight of the cross-entropy of mixed images."""
    ramp: Count = 0
    """Steps over which that weight grows from 0: the teacher is better by then."""
    ema_momentum: Probability = 0.99
    """Share of the old teacher weights kept at each step."""
    threshold: Probability = 0.8
    """Confidence from which on the teacher's label counts."""
    source_colours: NonNegative = 0.0
    """Weight of what the teacher says of the target image in the colours that the source model learned from,
    beside 1 for the image as it is; 0 = off."""
    stored_labels: bool = False
    """Below the threshold: true = the label of stage pseudo_labels, false = none (ignored)."""
    class_mix: Probability = 0.5
    """Probability of pasting half the classes of a source image onto a target image."""
    colour_transfer: Probability = 0.8
    """Probability of giving a source image the colour mean and deviation of a target image."""
    class_colour_transfer: Probability = 0.0
    """Probability of doing so class by class after that, with the teacher's labels of the target image."""
    erp_warp: Probability = 0.0
    """Probability of warping a pinhole source image onto the target's sphere before it is pasted."""
    tilt: Annotated[float, Field(ge=0.0, le=90.0)] = 0.0
    """Largest tilt of the camera, in degrees, that the student sees mixed images with; the teacher sees them
    upright. Needs a target of full circles; 0 = off."""


class TeacherMixTask(TeacherKept, PairTask):
    """One adaptation run."""

    def __init__(
        self,
        model: Segmenter,
        source: Callable[[int], Iterator[Batch]],
        target: Callable[[int], Iterator[Batch]],
        *,
        params: TeacherMixParams,
        warp: Warp | None,
        tilt: Tilt | None = None,
        **common: Any,
    ) -> None:
        """Set up.

        Args:
            model: Student; the teacher starts as it.
            source: Labelled source batches from a step on.
            target: Target batches from a step on, without colour augmentation; their labels are read where
                ``params.stored_labels``, and are stored pseudo-labels then.
            params: The adapt section.
            warp: Lays source images onto the part of the sphere that target samples show, or None where it
                makes no sense.
            tilt: Tilts mixed samples, or None.
            common: As in ``PairTask``.
        """
        super().__init__(model, source, target, **common)
        self.params, self.warp, self.tilt = params, warp, tilt
        self.teacher = Teacher(model, momentum=params.ema_momentum)

    def losses(self, step: int, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """Both cross-entropies, and the share of target pixels that the teacher labels."""
        p = self.params
        values: dict[str, Tensor] = {}
        image, label, valid = self.unpack(batch[0])
        target_image, stored, target_valid = self.unpack(batch[1])
        lacking = self.lacking(batch[0])
        if not p.stored_labels:
            stored = torch.full_like(stored, IGNORE_INDEX)
        versions = []
        if p.source_colours > 0:
            recoloured = in_source_colours(self.teacher.module, target_image, target_valid)
            versions = [(p.source_colours, recoloured)]
        target_label = self.teacher.relabel(
            target_image, stored, target_valid, p.threshold, versions=versions
        )
        values["teacher/kept_share"] = (target_label != IGNORE_INDEX).float().mean()
        styled = colour_transfer(image, valid, target_image, target_valid, p.colour_transfer)
        styled = class_colour_transfer(styled, label, target_image, target_label, p.class_colour_transfer)
        placed, placed_label = self._placed(styled, label, batch)
        pasted = self._pasted(placed_label)
        mixed, mixed_label = paste(placed, placed_label, target_image, target_label, pasted)
        colours = {"jitter": p.augment_target.jitter, "exposure": p.augment_target.exposure}
        mixed = photometric(mixed, target_valid | pasted, **colours)
        if self.tilt is not None:
            maps = torch.stack((mixed_label, pasted.long()), dim=1)
            mixed, maps = self.tilt(mixed, maps, batch[1])
            mixed_label, pasted = maps[:, 0], maps[:, 1] == 1
        total, _, _ = self.source_losses(values, styled, label, lacking)
        logits = leave_out(self.trained(normalise(mixed)), lacking, pasted)
        values["loss/target_ce"] = cross_entropy(logits, mixed_label)
        weight = p.target_weight * min(1.0, (step + 1) / max(1, p.ramp))
        return {**values, "loss/total": total + weight * values["loss/target_ce"]}

    def _placed(self, image: Tensor, label: Tensor, batch: tuple[Batch, Batch]) -> tuple[Tensor, Tensor]:
        """Source images and labels where the target samples may show them, 255 elsewhere."""
        if self.warp is not None and bool(torch.rand(()) < self.params.erp_warp):
            return self.warp(image, label, *batch)
        return place(image, label, (batch[1]["image"].shape[-2], batch[1]["image"].shape[-1]))

    def _pasted(self, label: Tensor) -> Tensor:
        """(B, H, W) bool, True on the pixels of placed source images that are pasted."""
        drawn = rows(lambda n: torch.rand(n, 1, 1, device=label.device), label.shape[0])
        return class_mix_mask(label) & (drawn < self.params.class_mix)


def task(setup: Setup) -> TeacherMixTask:
    """The task of a stage's run."""
    p: TeacherMixParams = setup.params
    target = setup.unlabelled
    stored = PseudoLabelSplit(target, setup.folder("pseudo_labels")) if p.stored_labels else target
    return TeacherMixTask(
        setup.model,
        setup.batches(setup.source, p.augment_source, domain="source"),
        setup.batches(stored, p.augment_target, domain="target", colour=False),
        params=p,
        warp=warp_onto_sphere(setup.source, target) if p.erp_warp > 0 else None,
        tilt=Tilt(target, p.tilt) if p.tilt > 0 else None,
        weight=setup.class_weights(p.class_weights),
        device=setup.device,
        lacking=setup.lacking,
    )


METHOD = Method(stage="adapt", params=TeacherMixParams, task=task)
