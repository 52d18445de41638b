"""DMLP decoder: one deformable block per stage, summed at stride 4.

Source: Trans4PASS (CVPR 2022, arXiv 2203.01452), section 3.3, and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from panoda.models.core.head import PYRAMID, Decoder
from panoda.models.deform.layers import DeformableMLP, DeformableProjection


class DMLPBlock(nn.Module):
    """Project a stage to the embedding width and mix it with two deformable MLPs."""

    def __init__(self, in_channels: int, width: int) -> None:
        """Build for (N, in_channels, H, W) stage outputs."""
        super().__init__()
        self.project = DeformableProjection(in_channels, width)
        self.mlp1 = DeformableMLP(width)
        self.mlp2 = DeformableMLP(width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        x = self.project(x)
        x = x + self.mlp1(x) + self.mlp2(x)
        x = x.permute(0, 2, 3, 1)  # (N, H, W, width)
        x = x + self.mix(x)
        return self.out(x).permute(0, 3, 1, 2)


class DMLPDecoder(Decoder):
    """Four DMLP blocks and a 1x1 prediction.

    Attributes:
        width: Channels of every embedding (128 as published).
        blocks: One block per stage.
        predict: 1x1 convolution from the summed embeddings to class logits.
    """

    name = "dmlp"
    align_corners = True
    default_width = 128
    block: ClassVar[type[nn.Module]] = DMLPBlock

    def __init__(
        self, channels: Sequence[int], *, num_classes: int, width: int = 128, strides: Sequence[int] = PYRAMID
    ) -> None:
        """Build for stages of ``channels`` at strides 4, 8, 16, 32.

        Raises:
            ValueError: as ``Decoder``.
        """
        super().__init__(channels, strides=strides, num_classes=num_classes, width=width)
        self.blocks = nn.ModuleList(self.block(found, width) for found in self.channels)
        self.predict = nn.Conv2d(width, num_classes, 1)

    def embeddings(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Stage outputs -> one (N, width, H/4, W/4) embedding each, upsampled to stride 4."""
        size = stages[0].shape[2:]
        return [
            F.interpolate(block(stage), size=size, mode="bilinear", align_corners=True)
            for block, stage in zip(self.blocks, self.checked(stages), strict=True)
        ]

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Stage outputs -> logits (N, K, H/4, W/4) and features (N, width, H/4, W/4)."""
        first, *others = self.embeddings(stages)
        features = sum(others, first)
        return self.predict(features), features
