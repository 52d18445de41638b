"""Bilinear samples at learned positions, the first half of ``deform_conv2d``.

Positions stay in pixels, and values are blended in torchvision's order of operations, so samples
equal its bit for bit. The round trip through ``grid_sample``'s normalised coordinates would cost
1e-5 pixels, which turns offsets of exactly zero into a random choice of one-sided derivative and,
amplified by the layers behind, breaks parity with released weights.

A map is padded by zeros on all sides and flattened; a sample is read from its upper left corner, at an
index of that flat map, and from the three others at constant steps from there. Where few channels share
positions (RGB) or each has its own (the deformable MLPs), values are gathered one by one. Where many
channels share positions, they are read as rows of a channels-last table by ``embedding_bag`` (a bag is the
four corners of a sample, weighted). Both are made of PyTorch's operators alone, so they have gradients,
compile, and can be exported; sizes may be symbols. Offsets and groups are laid out as in
``panoda.models.deform.ops``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from panoda.models.encoders.layers import exporting

# A position is clamped to [-2, size]; both ends read zeros alone, so values and derivatives vanish.
MARGIN = 2


class Geometry(NamedTuple):
    """Kernel, stride, padding and dilation, height before width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def taps(self) -> int:
        """K."""
        return self.kernel[0] * self.kernel[1]

    def output(self, size: Sequence[int]) -> tuple[int, int]:
        """Output size for an input size."""
        reach = [self.dilation[a] * (self.kernel[a] - 1) + 1 for a in (0, 1)]
        height, width = ((size[a] + 2 * self.padding[a] - reach[a]) // self.stride[a] + 1 for a in (0, 1))
        return height, width

    def places(self, tap: Tensor, axis: int, size: int) -> Tensor:
        """(K, size): row (or column) of every tap of every output row (or column), without offsets."""
        step = torch.arange(size, device=tap.device) * self.stride[axis]
        return (tap * self.dilation[axis] - self.padding[axis])[:, None] + step


def gather(x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Geometry) -> Tensor:
    """Samples (N, C * K, Ho * Wo), value by value."""
    n, each = x.shape[0], x.shape[1] // groups
    first, steps, shares = _corners(x, offset, groups, geometry)
    flat = F.pad(x, (MARGIN,) * 4).reshape(n, groups, each, -1)
    first = first.reshape(n, groups, 1, -1)
    total: Tensor | None = None
    for step, share in zip(steps, shares, strict=True):
        part = flat.gather(3, (first + step).expand(-1, -1, each, -1)) * share.reshape(n, groups, 1, -1)
        total = part if total is None else total + part
    assert total is not None
    if mask is not None:
        total = total * mask.reshape(n, groups, 1, -1)
    return total.reshape(n, x.shape[1] * geometry.taps, offset.shape[2] * offset.shape[3])


def bag(x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Geometry) -> Tensor:
    """Samples (N, Ho * Wo, G * K * C/G), row by row."""
    n, each = x.shape[0], x.shape[1] // groups
    first, steps, shares = _corners(x, offset, groups, geometry)
    padded = F.pad(x, (MARGIN,) * 4)
    cells = padded.shape[2] * padded.shape[3]
    # Rows of a table (N * G * padded pixels, C / G).
    table = padded.reshape(n, groups, each, cells).transpose(2, 3).reshape(-1, each)
    maps = torch.arange(n * groups, device=x.device, dtype=torch.int64).reshape(n, groups, 1, 1, 1)
    index = _by_pixel(first + maps * cells)
    weights = [_by_pixel(share if mask is None else share * mask.reshape(share.shape)) for share in shares]
    if exporting():  # ONNX knows no bags
        rows = (table.index_select(0, index + step) for step in steps)
        parts = [row * weight[:, None] for row, weight in zip(rows, weights, strict=True)]
        total = parts[0] + parts[1] + parts[2] + parts[3]
    else:
        bags = torch.stack([index + step for step in steps], dim=-1)
        total = F.embedding_bag(bags, table, mode="sum", per_sample_weights=torch.stack(weights, dim=-1))
    return total.reshape(n, offset.shape[2] * offset.shape[3], geometry.taps * x.shape[1])


def _corners(
    x: Tensor, offset: Tensor, groups: int, geometry: Geometry
) -> tuple[Tensor, tuple[int, int, int, int], list[Tensor]]:
    """Where samples lie: (N, G, K, Ho, Wo) each.

    Returns:
        Index of the upper left corner in the padded and flattened map; the way from it to all four
        corners; the corners' shares. NaN gives NaN shares.
    """
    y, x_ = _positions(offset, groups, geometry)
    top, left = y.floor(), x_.floor()
    # Clamped as integers, where NaN is a number too.
    row = top.to(torch.int64).clamp(-MARGIN, x.shape[2])
    column = left.to(torch.int64).clamp(-MARGIN, x.shape[3])
    width = x.shape[3] + 2 * MARGIN
    ly, lx = y - top, x_ - left
    my, mx = 1 - ly, 1 - lx
    first = row * width + column + MARGIN * (width + 1)
    return first, (0, 1, width, width + 1), [my * mx, my * lx, ly * mx, ly * lx]


def _positions(offset: Tensor, groups: int, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Rows y and columns x of every sample, (N, G, K, Ho, Wo) each."""
    height, width = offset.shape[2:]
    by_tap = offset.reshape(offset.shape[0], groups, geometry.taps, 2, height, width)
    tap = torch.arange(geometry.taps, device=offset.device)
    across = geometry.kernel[1]
    rows = geometry.places(tap // across, 0, height).to(offset.dtype)
    columns = geometry.places(tap % across, 1, width).to(offset.dtype)
    return by_tap[:, :, :, 0] + rows[:, :, None], by_tap[:, :, :, 1] + columns[:, None]


def _by_pixel(values: Tensor) -> Tensor:
    """(N, G, K, Ho, Wo) -> flat in the order N, Ho, Wo, G, K."""
    return values.permute(0, 3, 4, 1, 2).reshape(-1)
