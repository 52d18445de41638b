"""Sections of pseudo-labels and prototypes."""

from __future__ import annotations

from panoda.config.section import Probability, Scales, Section


class PseudoLabelParams(Section):
    """Pseudo-labels of the target train split."""

    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose logits are averaged."""
    flip: bool = True
    """Also average the mirrored image."""
    quantile: Probability = 0.5
    """Per-class confidence quantile below which pixels are ignored."""
    cap: Probability = 0.9
    """Upper bound of every threshold."""
    prototype_sums: bool = False
    """Also sum features for stage prototypes, which then passes over the source alone (if its scales are the
    same)."""


class PrototypeParams(Section):
    """Multi-scale prototypes of both domains."""

    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose features are averaged."""
<<<<<<< HEAD
=======
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Images per forward pass."""
    piece_images: Annotated[int, Field(ge=1)] = 64
    """Images per piece of work: what a killed run loses at most, and what a worker of a cluster takes at a
    time."""


class MPAParams(Section):
    """Mutual prototypical adaptation loss."""

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
    """EMA teacher that relabels the target online where it is confident."""

    enabled: bool = True
    """Use a teacher; false = the stored pseudo-labels alone."""
    ema_momentum: Probability = 0.99
    """Share of the old teacher weights kept at each step."""
    threshold: Probability = 0.5
    """Where the teacher is at least so confident, its label takes the place of the stored pseudo-label, which
    stays elsewhere."""


class AdaptParams(Section):
    """Self-training with pseudo-labels plus MPA; every extra part can be switched off."""

    iterations: Count
    """Optimiser steps; 0 passes the model through."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step and domain."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a batch is computed in; saves memory, costs a forward pass. Batch norms see these."""
    optim: OptimParams
    """Optimiser."""
    source_weight: NonNegative = 1.0
    """Weight of the source cross-entropy."""
    target_weight: NonNegative = 1.0
    """Weight of the target cross-entropy (unweighted classes); 0 = off."""
    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights of the source loss."""
    mpa: MPAParams = MPAParams()
    """Prototype loss; of the target, without the pixels that class_mix pastes."""
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
    """Probability of warping a pinhole source image onto the target's sphere, onto the part that a sample
    shows."""
    augment_source: AugmentParams = AugmentParams()
    """Source augmentation."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation."""
    keep: Literal["student", "teacher"] = "teacher"
    """Which weights are the result (the teacher needs teacher.enabled)."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between resume points."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between logged metrics."""

    @model_validator(mode="after")
    def _divided(self) -> AdaptParams:
        check_accumulate(self.batch_size, self.accumulate)
        return self

    @model_validator(mode="after")
    def _keep(self) -> AdaptParams:
        if self.keep == "teacher" and not self.teacher.enabled:
            raise ValueError("keep: teacher needs teacher.enabled: true")
        return self
>>>>>>> training
