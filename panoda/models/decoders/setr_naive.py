"""SETR-naive (arXiv 2012.15840, section 3.3): one convolution on the last map of a ViT."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor

from panoda.models.core.head import ConvBlock, prediction
from panoda.models.core.setr import SETRDecoder


class SETRNaiveDecoder(SETRDecoder):
    """A 1x1 ConvBlock on the last map, a prediction; the logits are resized in one go."""

    name = "setr_naive"

    def build(self) -> None:
        """Make the layers of the main head."""
        self.feature_stride = self.strides[-1]
        self.norm = LayerNorm2d(self.channels[-1], eps=1e-6)
        self.block = ConvBlock(self.channels[-1], self.width, 1)
        self.predict = prediction(self.width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, h, w) and features (N, width, h, w) at the maps' stride."""
        features = self.block(self.norm(self.checked(stages)[-1]))
        return self.predict(features), features
