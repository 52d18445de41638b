"""DMLPv2 decoder of Trans4PASS+: channel MLPs in series with pooling and one deformable MLP.

Source: Trans4PASS+ (arXiv 2207.11860), section 3.3, and its released code (which activates nothing
inside the channel MLP). New layers start at random as PyTorch's do, where the released code draws
from a truncated normal distribution; gamma starts at one as there.
"""

from __future__ import annotations

import torch
from timm.layers import SqueezeExcite
from torch import Tensor, nn

from panoda.models.deform.decoder import DeformableDecoder
from panoda.models.deform.layers import DeformableMLP, DeformableProjection


class ChannelMLP(nn.Module):
    """Linear, a depthwise 3x3 convolution beside the identity, linear, squeeze and excite.

    Attributes:
        gamma: (C,) factor on the depthwise convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.fc1 = nn.Linear(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.fc2 = nn.Linear(channels, channels)
        self.se = SqueezeExcite(channels, rd_ratio=0.25, rd_divisor=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        x = self.fc1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.gamma.view(1, -1, 1, 1) * self.depthwise(x)
        return self.se(self.fc2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class DMLPv2Block(nn.Module):
    """Project a stage to the embedding width, mix its channels with pooled neighbours, then deform."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.project = DeformableProjection(in_channels, width)
        self.channel1 = ChannelMLP(width)
        self.norm = nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.channel2 = ChannelMLP(width)
        self.mlp = DeformableMLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        x = self.project(x)
        x = self.channel1(x) + self.pool(self.norm(x))
        return self.channel2(x) + self.mlp(x)


class DMLPv2Decoder(DeformableDecoder):
    """Four DMLPv2 blocks, summed at stride 4, and a 1x1 prediction."""

    name = "dmlpv2"
    block = DMLPv2Block
