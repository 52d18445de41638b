"""FCN's head (arXiv 1411.4038), with the width and dropout of its released configuration in MMSegmentation.

Checked against transformers' UperNetFCNHead with shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from panoda.models.core.head import ConvBlock, Decoder, prediction


class FCNDecoder(Decoder):
    """Two 3x3 ConvBlocks on one map, a prediction.

    Attributes:
        index: Which map; the last one unless stated.
    """

    name = "fcn"
    needs_pyramid = False
    default_width = 512

    def __init__(
        self,
        channels: Sequence[int],
        *,
        strides: Sequence[int],
        num_classes: int,
        width: int = 512,
        index: int = -1,
        dropout: float = 0.1,
    ) -> None:
        """Build for map ``index``, counted from the first (0) or from the last (-1).

        Raises:
            ValueError: as ``Decoder``, or no such map.
        """
        if not -len(channels) <= index < len(channels):
            raise ValueError(
                f"fcn: there is no map {index} among {len(channels)}; choose one, -1 for the last"
            )
        super().__init__(
            channels, strides=strides, num_classes=num_classes, width=width, feature_stride=strides[index]
        )
        self.index = index
        self.blocks = nn.Sequential(ConvBlock(self.channels[index], width, 3), ConvBlock(width, width, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.predict = prediction(width, num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, h, w) and features (N, width, h, w) at the stride of the map."""
        features = self.blocks(self.checked(stages)[self.index])
        return self.predict(self.dropout(features)), features
