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

    def __init__(
        self, channels: Sequence[int], *, strides: Sequence[int], num_classes: int, width: int = 512
    ) -> None:
        """Build for maps of ``channels``; errors as ``Decoder``."""
        super().__init__(
            channels, strides=strides, num_classes=num_classes, width=width, feature_stride=strides[-1]
        )
        self.blocks = nn.Sequential(ConvBlock(self.channels[-1], width, 3), ConvBlock(width, width, 3))
        self.dropout = nn.Dropout2d(0.1)
        self.predict = prediction(width, num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, h, w) and features (N, width, h, w) at the stride of the map."""
        features = self.blocks(self.checked(stages)[-1])
        return self.predict(self.dropout(features)), features
