"""Encoder plus decoder: normalised images to logits and features."""

from __future__ import annotations

from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn

from panoda.models.decoder import DMLPDecoder
from panoda.models.encoder import Encoder

MIN_SIZE = 32


class Segmenter(nn.Module):
    """A semantic segmentation model.

    Attributes:
        name: Registered name, or "" for a model built by hand.
        arguments: Keywords with which ``create_model`` built it.
        encoder: Image -> four stages.
        decoder: Stages -> logits and features at stride 4.
    """

    def __init__(self, encoder: Encoder, decoder: DMLPDecoder, *, name: str = "") -> None:
        """Join an encoder and a decoder of matching widths."""
        super().__init__()
        self.name = name
        self.arguments: dict[str, float] = {}
        self.encoder = encoder
        self.decoder = decoder

    @property
    def num_classes(self) -> int:
        """K, the number of classes predicted."""
        return self.decoder.predict.out_channels

    @property
    def feature_channels(self) -> int:
        """Channels of the features."""
        return self.decoder.width

    @overload
    def forward(self, x: Tensor, *, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, return_features: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, *, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Segment images.

        Args:
            x: (N, 3, H, W) float, normalised with ImageNet mean and deviation; H, W >= 32.
            return_features: Also return the features.

        Returns:
            logits (N, K, H, W), or (logits, features (N, D, H/4, W/4)); features are the sum of the
            four decoder embeddings. Sizes that 4 does not divide are rounded up.

        Raises:
            ValueError: not a batch of RGB images, or smaller than 32 pixels.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"expected images (N, 3, H, W), got shape {tuple(x.shape)}")
        if min(x.shape[2], x.shape[3]) < MIN_SIZE:
            raise ValueError(
                f"images of {x.shape[2]}x{x.shape[3]} pixels (height x width) are too small; "
                f"the model needs at least {MIN_SIZE}x{MIN_SIZE}"
            )
        logits, features = self.decoder(self.encoder(x))
        logits = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)
        return (logits, features) if return_features else logits
