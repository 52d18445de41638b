"""Sections of the model and of the stages that train it on labels."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from panoda.config.section import (
    MIN_SIDE,
    Count,
    NonNegative,
    Positive,
    Probability,
    Range,
    Section,
    names_in,
)

Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
DECODERS = names_in("models/decoders")
"""Names of decoders: the files of ``panoda/models/decoders``."""
ENCODERS = (
    *(f"trans4pass_{size}" for size in ("nano", "t", "s", "b3", "b4", "b5", "plus_t", "plus_s")),
    *(f"{family}_b{size}" for family in ("mit", "pvt_v2", "segformer") for size in range(6)),
)
"""Names of encoders, and of models that are named as one; besides vit:NAME and timm:NAME."""


class ModelParams(Section):
    """The segmentation model."""

    encoder: str = "trans4pass_nano"
    """trans4pass_{nano,t,s,b3,b4,b5}, mit_b0..5, pvt_v2_b0..5, vit:NAME or timm:NAME (docs/models.md)."""
    decoder: Annotated[str, Field(json_schema_extra={"enum": list(DECODERS)})] = "dmlp"
    """What makes logits of the encoder's maps (docs/models.md)."""
    width: Annotated[int, Field(ge=1)] | None = None
    """Channels of the decoder's features; null = as published."""
    blocks: tuple[Count, ...] | None = None
    """Encoder blocks or maps handed to the decoder, from 0; null = the usual ones."""
    wrap: bool = False
    """Plain ViTs: position embeddings close around the circle. Every image must then be a whole one: sources
    and target full panoramas, no crops, random scales or sliding windows."""
    auxiliary_weights: tuple[NonNegative, ...] | None = None
    """Loss weights of the decoder's auxiliary heads, one per head; null = as published, [] = none."""
    drop_path: Probability = 0.1
    """Stochastic depth of the last encoder block."""
    weights: str | None = None
    """Pretrained weights: a file below data/weights (`panoda weights`), imagenet (an installed package's, or
    timm's), timm (what it has), or null."""

    @field_validator("decoder")
    @classmethod
    def _known_decoder(cls, name: str) -> str:
        if name not in DECODERS:
            raise ValueError(_unknown("decoder", name, DECODERS, f"one of {', '.join(DECODERS)}"))
        return name

    @field_validator("encoder")
    @classmethod
    def _known(cls, name: str) -> str:
        kind, _, rest = name.partition(":")
        if name in ENCODERS or (kind in ("vit", "timm") and rest):
            return name
        known = "trans4pass_{nano,t,s,b3,b4,b5}, mit_b0..5, pvt_v2_b0..5, vit:NAME or timm:NAME"
        raise ValueError(_unknown("encoder", name, ENCODERS, known))


def _unknown(what: str, name: str, names: Sequence[str], expected: str) -> str:
    near = get_close_matches(name, names, n=1)
    return f"unknown {what} {name!r}; {f'did you mean {near[0]}? ' if near else ''}Expected {expected}"


class OptimParams(Section):
    """Optimiser and schedule: AdamW or SGD, linear warm-up, then polynomial or cosine decay."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    lr: Positive
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Decoupled (AdamW) or L2 (SGD) weight decay; not on norms, biases, position tables and tokens."""
    momentum: Probability = 0.9
    """SGD momentum."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW's momenta of the gradient and of its square."""
    warmup_iterations: Count = 0
    """Steps of linear learning-rate warm-up."""
    schedule: Literal["poly", "cosine"] = "poly"
    """After the warm-up: polynomial decay, or half a cosine, to zero."""
    poly_power: NonNegative = 0.9
    """Exponent of the polynomial decay."""
    horizon: Count = 0
    """Steps after which the decay would reach zero; 0 = the iterations of the stage."""
    clip_norm: NonNegative = 0.0
    """Gradient-norm clipping; 0 = off."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor per layer on the rate from the decoder down to the embedding (0.65 for ViT-B); 1 = off."""
    head_lr_factor: Positive = 1.0
    """Factor on the learning rate of the decoder and its auxiliary heads."""


class AugmentParams(Section):
    """Joint image and label augmentation."""

    crop_height: Count = 0
    """Crop height in pixels, at least 32; 0 = whole image."""
    crop_width: Count = 0
    """Crop width in pixels, at least 32; 0 = whole image."""
    scale: Range = (1.0, 1.0)
    """Random resize factor range before cropping."""
    hflip: Probability = 0.5
    """Probability of mirroring left-right."""
    yaw_roll: bool = False
    """Roll panoramas by a random yaw (wraps around); full 360-degree width only."""
    jitter: NonNegative = 0.0
    """Strength of brightness, contrast and saturation jitter."""
    exposure: NonNegative = 0.0
    """Strength of random exposure and gamma in stops."""

    @model_validator(mode="after")
    def _check(self) -> AugmentParams:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}; expected [smallest, largest], both above 0")
        if any(0 < side < MIN_SIDE for side in (self.crop_height, self.crop_width)):
            raise ValueError(
                f"a crop of {self.crop_height} x {self.crop_width} pixels (height x width) is too small; the "
                f"models need {MIN_SIDE} or more, or 0 for the whole image"
            )
        return self


class ClassWeightParams(Section):
    """Class weights of the supervised cross-entropy, from training-split pixel shares p."""

    kind: Literal["none", "enet", "sqrt_inverse"] = "sqrt_inverse"
    """enet = 1/log(1.02 + p) (released); sqrt_inverse = p^-1/2, normalised to mean 1."""
    cap: Positive = 10.0
    """Largest weight after normalisation."""


class MethodParams(Section):
    """What every training method has; the rest is in its own file in ``panoda/methods``."""

    method: str
    """The method: a file of panoda/methods (docs/extending.md)."""
    iterations: Count
    """Optimiser steps; 0 passes the model through."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step and domain."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a batch is computed in; saves memory, costs a forward pass. Batch norms see these."""
    optim: OptimParams
    """Optimiser of the segmentation model."""

    @model_validator(mode="after")
    def _divided(self) -> MethodParams:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}; set it to a divisor"
            )
        return self


class SourceTrainingParams(MethodParams):
    """What a method that trains a model on the source has besides: it is validated on source val."""

    iterations: Annotated[int, Field(ge=1)]
    """Optimiser steps."""
    validate_every: Count = 0
    """Steps between validations on source val; 0 = only at the end."""
    select: Literal["best_source_val", "last"] = "best_source_val"
    """Which checkpoint is kept. Target labels are never looked at."""
