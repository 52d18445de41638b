"""Encoder plus decoder: normalised images to logits and features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from panoda.models.core.channels import IMAGENET_MEAN, IMAGENET_STD, per_channel
from panoda.models.core.colours import Colours
from panoda.models.core.head import Decoder
from panoda.models.core.neck import PyramidNeck

MIN_SIZE = 32
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
Auxiliary = list[tuple[float, Tensor]]


class Segmenter(nn.Module):
    """A semantic segmentation model.

    Attributes:
        name: Registered name of the encoder, or "" for a model built by hand.
        arguments: Keywords with which ``create_model`` built it.
        neck: Between a plain ViT and a decoder that wants strides 4 to 32; else None.
        decoder: Maps -> logits and features.
        colours: Mean and deviation of the channels of the images it learned from, or None where not known.
    """

    def __init__(
        self, encoder: Any, decoder: Decoder, *, neck: PyramidNeck | None = None, name: str = ""
    ) -> None:
        super().__init__()
        self.name = name
        self.arguments: dict[str, Any] = {}
        self.colours: Colours | None = None
        self.encoder = encoder
        self.neck = neck
        self.decoder = decoder
        wanted = tuple(self.encoder.mean), tuple(self.encoder.std)
        self._foreign = wanted if wanted != _IMAGENET else None

    @property
    def num_classes(self) -> int:
        """K, the number of classes predicted."""
        return self.decoder.num_classes

    @property
    def feature_channels(self) -> int:
        """Channels of the features."""
        return self.decoder.width

    @property
    def feature_stride(self) -> int:
        """Pixels of the image per pixel of the features."""
        return self.decoder.feature_stride

    @property
    def wraps(self) -> bool:
        """The encoder itself closes panoramas around the circle."""
        return bool(getattr(self.encoder, "wrap", False))

    def forward(
        self, x: Tensor, *, return_features: bool = False, return_auxiliary: bool = False
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Auxiliary]:
        """Segment images.

        Args:
            x: (N, 3, H, W) float, normalised with ImageNet mean and deviation; H, W >= 32. An encoder whose
                weights want another normalisation gets it.
            return_features: Also return the features.
            return_auxiliary: Return features and auxiliary logits; for training.

        Returns:
            logits (N, K, H, W); with features (N, D, H / stride, W / stride), sizes rounded up; with a list
            of (loss weight, logits (N, K, H, W)), empty for a decoder without auxiliary heads.

        Raises:
            ValueError: not a batch of RGB images, or smaller than 32 pixels.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"expected images (N, 3, H, W), got shape {tuple(x.shape)}")
        # Each side by itself: min() of both would bind an exported model to images of one shape.
        if x.shape[2] < MIN_SIZE or x.shape[3] < MIN_SIZE:
            raise ValueError(
                f"images of {x.shape[2]}x{x.shape[3]} pixels (height x width) are too small; "
                f"the model needs at least {MIN_SIZE}x{MIN_SIZE}"
            )
        size = (x.shape[2], x.shape[3])
        stages = self.encoder(self._renormalised(x))
        if self.neck is not None:
            stages = self.neck(stages, size)
        logits, features = self.decoder(stages)
        logits = self._enlarged(logits, size)
        if return_auxiliary:
            heads = self.decoder.auxiliary(stages)
            return logits, features, [(weight, self._enlarged(extra, size)) for weight, extra in heads]
        return (logits, features) if return_features else logits

    def _renormalised(self, x: Tensor) -> Tensor:
        """ImageNet's normalisation -> that of the encoder's published weights."""
        if self._foreign is None:
            return x
        (mean, std), (own_mean, own_std) = (
            tuple(per_channel(v, x) for v in pair) for pair in (_IMAGENET, self._foreign)
        )
        return (x * (std / own_std) + (mean - own_mean) / own_std).to(x.dtype)

    def _enlarged(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        corners = self.decoder.align_corners
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=corners)
