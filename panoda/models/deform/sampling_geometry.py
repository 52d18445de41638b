"""Where the samples of a deformable convolution lie, and the four corners around each of them.

A map is padded by zeros on all sides and flattened; a sample is read from its upper left corner, at an index
of that flat map, and from the three others at constant steps from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A position is clamped to [-2, size]; both ends read zeros alone, so values and derivatives vanish.
MARGIN = 2


class Geometry(NamedTuple):
    """Side of a square kernel, stride and padding, in pixels."""

    kernel: int
    stride: int = 1
    padding: int = 0

    @property
    def taps(self) -> int:
        """K."""
        return self.kernel**2

    def output(self, size: Sequence[int]) -> tuple[int, int]:
        """Output size for an input size."""
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in size)
        return height, width

    def positions(self, out_size: Sequence[int], like: Tensor) -> Tensor:
        """(2, K, Ho, Wo): y and x of every tap of every output pixel, without offsets."""
        tap = torch.arange(self.taps, device=like.device)
        down, across = (torch.arange(side, device=like.device) * self.stride for side in out_size)
        rows = (tap // self.kernel - self.padding)[:, None] + down  # (K, Ho)
        columns = (tap % self.kernel - self.padding)[:, None] + across  # (K, Wo)
        return torch.stack(torch.broadcast_tensors(rows[:, :, None], columns[:, None])).to(like.dtype)


class Corners(NamedTuple):
    """Where samples lie: upper left corner in the padded map, and the way on to the lower right one."""

    start: Tensor  # int32
    ly: Tensor
    lx: Tensor

    @classmethod
    def of(cls, offsets: Tensor, base: Tensor, size: Sequence[int]) -> Corners:
        """Of positions offsets + base, both (2, ...), in a map of ``size``; NaN gives NaN fractions."""
        # y and x apart, not stacked: half the size keeps a tile's operations on one thread.
        y, x = (torch.add(o, b, out=o.new_empty(o.shape)) for o, b in zip(offsets, base, strict=True))
        floor_y, floor_x = y.floor(), x.floor()
        # Clamped as integers, where NaN is a number too.
        row, column = floor_y.int().clamp_(-MARGIN, size[0]), floor_x.int().clamp_(-MARGIN, size[1])
        width = size[1] + 2 * MARGIN
        start = column.add_(row, alpha=width).add_(MARGIN * (width + 1))
        return cls(start, y.sub_(floor_y), x.sub_(floor_x))

    def flatten(self, start_dim: int) -> Corners:
        """Last dimensions made one."""
        return Corners(*(tensor.flatten(start_dim) for tensor in self))

    def shares(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights of the four corners; they sum to 1."""
        my, mx = 1 - self.ly, 1 - self.lx
        return my * mx, my * self.lx, self.ly * mx, self.ly * self.lx

    def surface(self, corners: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Bilinear value and its derivatives along y and x."""
        upper = torch.lerp(corners[0], corners[1], self.lx)
        along_y = torch.lerp(corners[2], corners[3], self.lx).sub_(upper)
        along_x = torch.lerp(corners[1] - corners[0], corners[3] - corners[2], self.ly)
        return torch.addcmul(upper, along_y, self.ly), along_y, along_x


def steps(x: Tensor) -> tuple[int, int, int, int]:
    """From the upper left corner to all four, in the padded and flattened map."""
    row = x.shape[3] + 2 * MARGIN
    return 0, 1, row, row + 1


def padded_size(x: Tensor) -> tuple[int, int]:
    """Height and width of the padded map."""
    return x.shape[2] + 2 * MARGIN, x.shape[3] + 2 * MARGIN


def padded(x: Tensor) -> Tensor:
    """The map among zeros."""
    return F.pad(x, (MARGIN,) * 4)


def unpadded(x: Tensor) -> Tensor:
    """The map without what ``padded`` added."""
    return x[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
