"""The smallest decoder, as docs/extending.md adds it: all maps at stride 4 side by side, and a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panoda.models.core.head import ConvBlock, Decoder, prediction, resize


class LinearDecoder(Decoder):
    """A 1x1 ConvBlock over the concatenated maps, then a 1x1 prediction."""

    name = "linear_decoder"
    default_width = 64

    def build(self) -> None:
        """Make the layers, for maps of ``self.channels`` at strides 4, 8, 16, 32."""
        self.fuse = ConvBlock(sum(self.channels), self.width, 1)
        self.predict = prediction(self.width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, H/4, W/4) and features (N, width, H/4, W/4)."""
        size = self.checked(stages)[0].shape[2:]
        features = self.fuse(torch.cat([resize(stage, size) for stage in stages], dim=1))
        return self.predict(features), features
