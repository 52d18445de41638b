"""DMLP decoder: one deformable block per stage, summed at stride 4.

Source: Trans4PASS (CVPR 2022, arXiv 2203.01452), section 3.3, and its released code.
"""

from __future__ import annotations

from torch import Tensor, nn

from panoda.models.deform.decoder import DeformableDecoder
from panoda.models.deform.layers import DeformableMLP, DeformableProjection


class DMLPBlock(nn.Module):
    """Project a stage to the embedding width and mix it with two deformable MLPs."""

    def __init__(self, in_channels: int, width: int) -> None:
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


class DMLPDecoder(DeformableDecoder):
    """Four DMLP blocks and a 1x1 prediction."""

    name = "dmlp"
    block = DMLPBlock
