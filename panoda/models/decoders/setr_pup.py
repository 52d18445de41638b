"""SETR-PUP (arXiv 2012.15840, section 3.3): progressive upsampling of the last map of a ViT."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from panoda.models.core.head import ConvBlock, prediction, resize
from panoda.models.core.setr import SETRDecoder


class SETRPUPDecoder(SETRDecoder):
    """Four 3x3 ConvBlocks on the last map, each followed by upsampling x2 up to full resolution."""

    name = "setr_pup"
    auxiliary_kernel = 3

    def build(self) -> None:
        """Make the layers of the main head."""
        width, last = self.width, self.channels[-1]
        self.norm = LayerNorm2d(last, eps=1e-6)
        self.blocks = nn.ModuleList(ConvBlock(found, width, 3) for found in (last, width, width, width))
        self.predict = prediction(width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, H, W) and features (N, width, H/4, W/4): the third block's output.

        H and W are the maps' sides times their stride: those of the image where the stride divides it.
        """
        last = self.checked(stages)[-1]
        x = resize(self.blocks[0](self.norm(last)), self.size_at(last, 8))
        x = resize(self.blocks[1](x), self.size_at(last, 4))
        features = self.blocks[2](x)
        x = self.blocks[3](resize(features, self.size_at(last, 2)))
        return resize(self.predict(x), self.size_at(last, 1)), features
