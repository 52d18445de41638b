"""FCN's head (arXiv 1411.4038), with the width and dropout of its released configuration in MMSegmentation.

Checked against transformers' UperNetFCNHead with shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from panoda.models.core.head import ConvBlock, Decoder, prediction


class FCNDecoder(Decoder):
    """Two 3x3 ConvBlocks on the last map, a prediction."""

    name = "fcn"
    needs_pyramid = False
    default_width = 512

    def build(self) -> None:
        """Make the layers."""
        self.feature_stride = self.strides[-1]
        first = ConvBlock(self.channels[-1], self.width, 3)
        self.blocks = nn.Sequential(first, ConvBlock(self.width, self.width, 3))
        self.dropout = nn.Dropout2d(0.1)
        self.predict = prediction(self.width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, h, w) and features (N, width, h, w) at the stride of the map."""
        features = self.blocks(self.checked(stages)[-1])
        return self.predict(self.dropout(features)), features
