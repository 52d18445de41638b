"""What the decoders of Trans4PASS and Trans4PASS+ share: one deformable block per stage, summed at stride 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from panoda.models.core.head import Decoder


class DeformableDecoder(Decoder):
    """Four blocks and a 1x1 prediction.

    Attributes:
        width: Channels of every embedding (128 as published).
        block: Kind of the blocks: (in_channels, width).
        predict: 1x1 convolution from the summed embeddings to class logits.
    """

    align_corners = True
    default_width = 128
    block: ClassVar[type[nn.Module]]

    def build(self) -> None:
        """Make the blocks and the prediction."""
        self.blocks = nn.ModuleList(self.block(found, self.width) for found in self.channels)
        self.predict = nn.Conv2d(self.width, self.num_classes, 1)

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
