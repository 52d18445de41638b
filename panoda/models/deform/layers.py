"""Layers on the deformable operator: projections (DPE, DMLP's first half) and per-channel MLPs.

Source: Trans4PASS (CVPR 2022, arXiv 2203.01452), sections 3.2 and 3.3, and its released code
(widths, clamps, initialisation).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panoda.models.deform.ops import deform_conv2d
from panoda.models.encoders.layers import without_autocast


class DeformableConv(nn.Module):
    """A convolution sampled at positions that convolutions of the same geometry predict.

    Offsets are clamped to a quarter of the shorter side of the input; the modulator is
    2 * sigmoid. Both start at zero, so a new layer equals ``proj`` exactly.

    Attributes:
        proj: The convolution whose weight and bias are used.
        offset_conv: Predicts 2 * K offset channels, y before x per tap.
        modulator_conv: Predicts K channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()

        def conv(channels: int) -> nn.Conv2d:
            return nn.Conv2d(in_channels, channels, kernel_size, stride=stride, padding=padding)

        self.proj = conv(out_channels)
        self.offset_conv = conv(2 * kernel_size**2)
        self.modulator_conv = conv(kernel_size**2)
        self.stride, self.padding = stride, padding
        for parameter in (*self.offset_conv.parameters(), *self.modulator_conv.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, Ho, Wo)."""
        # Sizes of an export may be open, and then no branch must settle which is smaller.
        reach = torch.sym_min(x.shape[2], x.shape[3]) // 4
        # Positions of tens of pixels lose their fraction in bfloat16, so they are predicted in float32.
        with without_autocast(x):
            full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            offset = self.offset_conv(full).clamp(-reach, reach)
            mask = 2 * torch.sigmoid(self.modulator_conv(full))
        return deform_conv2d(
            x, offset, self.proj.weight, self.proj.bias, mask=mask, stride=self.stride, padding=self.padding
        )


class DeformableProjection(DeformableConv):
    """Deformable 3x3 convolution of stride 1, BatchNorm, GELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, H, W)."""
        return self.act(self.norm(super().forward(x)))


class DeformableMLP(nn.Module):
    """A 1x1 linear layer that reads every channel at a position of its own; BatchNorm, GELU.

    One depthwise-separable convolution predicts 3 * C channels: 2 * C offsets, handed to the
    operator as they are (channel 2g is the y and 2g + 1 the x offset of input channel g), clamped to
    a quarter of the longer side, then C modulators (2 * sigmoid). The released code starts that
    convolution at random; here its pointwise half starts at zero, so a new layer is undeformed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.GELU()
        nn.init.zeros_(self.pointwise.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        channels = x.shape[1]
        reach = torch.sym_max(x.shape[2], x.shape[3]) // 4
        with without_autocast(x):
            full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            predicted = self.pointwise(self.depthwise(full))
            offset, mask = predicted.split((2 * channels, channels), dim=1)
            offset, mask = offset.clamp(-reach, reach), 2 * torch.sigmoid(mask)
        return self.act(self.norm(deform_conv2d(x, offset, self.linear.weight, self.linear.bias, mask=mask)))
