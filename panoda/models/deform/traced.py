"""``deform_gather`` and ``deform_bag`` in plain operators, for graphs that leave PyTorch.

The operators of ``panoda.models.deform.sampling`` exist in this package alone: neither ONNX nor a program that
torch.export saved could run them elsewhere. While a graph is traced for export, the same samples are read
at the same positions with the same shares, so they agree to the last roundings. No tiles and nothing in
place: a runtime fuses as it likes. Sizes may be symbols.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from panoda.models.deform.sampling_geometry import MARGIN, Geometry


def gather(x: Tensor, offset: Tensor, mask: Tensor, groups: int, geometry: Geometry) -> Tensor:
    """Samples (N, C * K, Ho * Wo), as ``panoda.models.deform.sampling.gather``; all four corners at once."""
    n, channels, each = x.shape[0], x.shape[1], x.shape[1] // groups
    pixels = offset.shape[2] * offset.shape[3]
    count = geometry.taps * pixels
    first, steps, shares = _corners(x, offset, groups, geometry)
    flat = F.pad(x, (MARGIN,) * 4).reshape(n, groups, each, -1)
    index = torch.stack([first + step for step in steps], dim=2).reshape(n, groups, 1, 4 * count)
    values = flat.gather(3, index.expand(-1, -1, each, -1)).reshape(n, groups, each, 4, count)
    total = (values * torch.stack(shares, dim=2).reshape(n, groups, 1, 4, count)).sum(dim=3)
    return (total * mask.reshape(n, groups, 1, count)).reshape(n, channels * geometry.taps, pixels)


def bag(x: Tensor, offset: Tensor, mask: Tensor, groups: int, geometry: Geometry) -> Tensor:
    """Samples (N, Ho * Wo, G * K * C/G), as ``panoda.models.deform.sampling.bag``; one corner after the other."""
    n, each = x.shape[0], x.shape[1] // groups
    first, steps, shares = _corners(x, offset, groups, geometry)
    padded = F.pad(x, (MARGIN,) * 4)
    cells = padded.shape[2] * padded.shape[3]
    # Rows of a table (N * G * padded pixels, C / G).
    table = padded.reshape(n, groups, each, cells).transpose(2, 3).reshape(-1, each)
    maps = torch.arange(n * groups, device=x.device, dtype=torch.int64).reshape(n, groups, 1, 1, 1)
    index = _by_pixel(first + maps * cells)
    total: Tensor | None = None
    for step, share in zip(steps, shares, strict=True):
        part = table.index_select(0, index + step) * _by_pixel(share * mask.reshape(share.shape))[:, None]
        total = part if total is None else total + part
    assert total is not None
    return total.reshape(n, offset.shape[2] * offset.shape[3], geometry.taps * x.shape[1])


def _corners(
    x: Tensor, offset: Tensor, groups: int, geometry: Geometry
) -> tuple[Tensor, tuple[int, int, int, int], list[Tensor]]:
    """Where samples lie: (N, G, K, Ho, Wo) each.

    Returns:
        Index of the upper left corner in the padded and flattened map; the way from it to all four
        corners; the corners' shares.
    """
    size = offset.shape[2:]
    by_tap = offset.reshape(offset.shape[0], groups, geometry.taps, 2, *size)
    base_y, base_x = geometry.positions(size, offset)
    y, x_ = by_tap[:, :, :, 0] + base_y, by_tap[:, :, :, 1] + base_x
    top, left = y.floor(), x_.floor()
    row = top.to(torch.int64).clamp(-MARGIN, x.shape[2])
    column = left.to(torch.int64).clamp(-MARGIN, x.shape[3])
    width = x.shape[3] + 2 * MARGIN
    ly, lx = y - top, x_ - left
    my, mx = 1 - ly, 1 - lx
    first = row * width + column + MARGIN * (width + 1)
    return first, (0, 1, width, width + 1), [my * mx, my * lx, ly * mx, ly * lx]


def _by_pixel(values: Tensor) -> Tensor:
    """(N, G, K, Ho, Wo) -> flat in the order N, Ho, Wo, G, K."""
    return values.permute(0, 3, 4, 1, 2).reshape(-1)
