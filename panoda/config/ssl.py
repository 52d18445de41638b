"""Section ssl: learning from images alone, before any label."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from panoda.config.section import Count, Positive, Probability, Range, Section, Size, SourceWeights
from panoda.config.training import MethodParams, Momentum, OptimParams


class NoneParams(Section):
    """Nothing is learned from images without labels; the encoder starts as model.weights says."""

    method: Literal["none"] = "none"
    """No pretraining."""

    iterations: ClassVar[int] = 0
    batch_size: ClassVar[int] = 1
    accumulate: ClassVar[int] = 1
    images: ClassVar[SourceWeights] = {}


class SslOptimParams(OptimParams):
    """AdamW as masked image modelling is published with: linear warm-up, then half a cosine."""

    lr: Positive = 0.00015
    """Base learning rate: the peak is it times batch_size / 256."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    """Decoupled (AdamW) or L2 (SGD) weight decay; not on norms, biases, position tables and tokens."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """AdamW's momenta of the gradient and of its square."""
    schedule: Literal["poly", "cosine"] = "cosine"
    """After the warm-up: polynomial decay, or half a cosine, to zero."""


class SslParams(MethodParams):
    """What every method that learns from images alone has: which images, how they are cut, what is looked at."""

    iterations: Annotated[int, Field(ge=1)]
    """Optimiser steps."""
    optim: SslOptimParams = SslOptimParams()
    """Optimiser of encoder and decoder."""
    images: SourceWeights = {"target": 1.0}
    """Domain of data -> its share of the images, relative to the others'; train splits alone."""
    crop_height: Size = 224
    """Height in pixels that crops are brought to; a multiple of the patch."""
    crop_width: Size = 224
    """Width in pixels that crops are brought to; a multiple of the patch."""
    scale: Range = (0.2, 1.0)
    """Area of a crop, as a share of the largest one of its shape that fits the image."""
    hflip: Probability = 0.5
    """Probability of mirroring left-right."""
    yaw_roll: bool = True
    """Crops of full panoramas start at any column and go on across the seam."""
    views: Probability = 0.0
    """Share of the crops of full panoramas that are pinhole views out of them."""
    view_fov_deg: Range = (60.0, 100.0)
    """Horizontal field of view of these; less where the view would leave the panorama."""
    validate_every: Count = 0
    """Steps between looks at the fixed images; 0 = only at the end."""
    fixed_images: Annotated[int, Field(ge=1)] = 6
    """Images of the train splits with fixed masks, for the validation loss and the pictures."""

    @model_validator(mode="after")
    def _ranges(self) -> SslParams:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale is {list(self.scale)}; expected [smallest, largest], above 0 and up to 1"
            )
        if not 10 <= self.view_fov_deg[0] <= self.view_fov_deg[1] <= 150:
            raise ValueError(
                f"view_fov_deg is {list(self.view_fov_deg)}; expected [smallest, largest] from 10 to 150"
            )
        if not self.images:
            raise ValueError("images names no domain; expected one or more, such as {target: 1.0}")
        return self

    def scaled_optim(self) -> SslOptimParams:
        """The optimiser with the peak learning rate of this batch (Goyal et al., arXiv 1706.02677)."""
        return self.optim.model_copy(update={"lr": self.optim.lr * self.batch_size / 256})
