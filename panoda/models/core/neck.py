"""From the equal maps of a plain vision transformer to a pyramid of strides 4, 8, 16, 32.

Source: the UPerNet recipes of BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377): two transposed
convolutions with BatchNorm and GELU between them, one transposed convolution, nothing, a 2x2 max pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from panoda.models.core.head import resize
from panoda.models.encoders.layers import cells_of, cut_to, pad_to_multiple


class PyramidNeck(nn.Module):
    """Four maps of one stride, resampled by 4, 2, 1 and 1/2.

    Attributes:
        channels: Width of each output, that of the input.
        strides: 4, 8, 16, 32.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, channels: Sequence[int], stride: int = 16) -> None:
        """Build for four maps of ``stride`` pixels per cell.

        A stride other than 16 (DINOv2's 14) gives maps of a quarter, half, one and two of it, which are then
        resampled to 4, 8, 16, 32.
        """
        super().__init__()
        self.channels, self.stride = tuple(channels), stride
        self.scales = nn.ModuleList(
            (
                nn.Sequential(
                    _doubled(self.channels[0]),
                    nn.BatchNorm2d(self.channels[0]),
                    nn.GELU(),
                    _doubled(self.channels[0]),
                ),
                _doubled(self.channels[1]),
                nn.Identity(),
                _HalvedByMaximum(),
            )
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Build the pyramid.

        Args:
            maps: Four (N, C_i, H / stride, W / stride), sizes rounded up; cell (0, 0) begins at the image's
                top left corner.
            size: H, W of the image in pixels.

        Returns:
            Four (N, C_i, H / 4 / 2^i, W / 4 / 2^i), sizes rounded up.
        """
        return [
            self._fit(scale(y), (cells_of(size[0], stride), cells_of(size[1], stride)))
            for scale, y, stride in zip(self.scales, maps, self.strides, strict=True)
        ]

    def _fit(self, y: Tensor, size: tuple[int, int]) -> Tensor:
        """Resample to exactly 16 / stride times fewer cells, then cut off what lies beyond the image."""
        if self.stride != 16:
            # Whole numbers of cells on both sides, so that the ratio is the same for every size.
            y = pad_to_multiple(y, 16 // math.gcd(16, self.stride))
            y = resize(y, [side * self.stride // 16 for side in y.shape[2:]])
        return cut_to(y, *size)


class _HalvedByMaximum(nn.Module):
    """2x2 max pool, sizes rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h / 2, w / 2), sizes rounded up."""
        return F.max_pool2d(pad_to_multiple(x, 2), 2)  # in ceil_mode an exporter would ask for parity


def _doubled(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
