"""SegFormer's head: one linear layer per stage, fused at stride 4.

Source: SegFormer (NeurIPS 2021, arXiv 2105.15203), section 3.2. Published widths: 256 with MiT-B0 and
B1, 768 from B2 on. Checked against transformers' SegformerDecodeHead with shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from panoda.models.core.head import ConvBlock, Decoder, prediction, resize


class SegFormerDecoder(Decoder):
    """Linear layers to one width, a 1x1 fusion of all of them at stride 4, a prediction.

    Attributes:
        linears: One linear layer per stage, first stage first.
        fuse: 1x1 ConvBlock over the concatenated stages, last stage first as published.
        dropout: Drops whole channels ahead of the prediction.
    """

    name = "segformer"
    default_width = 256

    def build(self) -> None:
        """Make the layers."""
        self.linears = nn.ModuleList(nn.Linear(found, self.width) for found in self.channels)
        self.fuse = ConvBlock(len(self.channels) * self.width, self.width, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.predict = prediction(self.width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Stage outputs -> logits (N, K, H/4, W/4) and features (N, width, H/4, W/4).

        A 1x1 convolution commutes with bilinear resizing. So each stage passes its share of the fusion
        at its own stride, and the sum replaces a concatenation of 4 * width channels at stride 4.
        """
        size = self.checked(stages)[0].shape[2:]
        shares = self.fuse.conv.weight.chunk(len(stages), dim=1)  # (width, width, 1, 1), last stage first
        fused: list[Tensor] = []
        for stage, linear, share in zip(stages, self.linears, reversed(shares), strict=True):
            x = linear(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = F.conv2d(x, share)
            fused.append(resize(x, size) if fused else x)  # the first stage sets the size
        features = self.fuse.activate(sum(fused[1:], fused[0]))
        return self.predict(self.dropout(features)), features
