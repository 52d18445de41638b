"""Tileable value noise, integer hashes and box-filtered patterns, all as tensors."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_SIDE = 256


@cache
def _table() -> Tensor:
    """(65536,) fixed uniform numbers."""
    generator = torch.Generator().manual_seed(20240229)
    return torch.rand(_SIDE * _SIDE, generator=generator)


def hashed(a: Tensor, b: Tensor, c: Tensor | int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on three integers (int64, broadcastable)."""
    key = (a * 73856093) ^ (b * 19349663) ^ (torch.as_tensor(c) * 83492791)
    key = key ^ (key >> 13)
    return _table()[key & 0xFFFF]


def value_noise(x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise in [0, 1], one cell per unit, repeating every 256 units."""
    table = _table()
    floor_x, floor_y = x.floor(), y.floor()
    fx, fy = x - floor_x, y - floor_y
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    column, row = floor_x.to(torch.int64) & 255, floor_y.to(torch.int64) & 255
    right, below = (column + 1) & 255, ((row + 1) & 255) * _SIDE
    row = row * _SIDE
    upper = torch.lerp(table[row + column], table[row + right], fx)
    lower = torch.lerp(table[below + column], table[below + right], fx)
    return torch.lerp(upper, lower, fy)


def fractal_noise(x: Tensor, y: Tensor, octaves: int) -> Tensor:
    """Sum of octaves of value noise, in [0, 1]."""
    total, weight, scale = torch.zeros_like(x), 0.0, 1.0
    for k in range(octaves):
        total = total + value_noise(x * scale + 17.3 * k, y * scale - 9.1 * k) / scale
        weight += 1.0 / scale
        scale *= 2.0
    return total / weight


def fade(footprint: Tensor, period: float | Tensor) -> Tensor:
    """1 where a pattern of this period is resolved by the pixel footprint, 0 where it is not."""
    return (1.6 - 2.0 * footprint / period).clamp(0.0, 1.0)


def pulse(x: Tensor, footprint: Tensor, period: float | Tensor, duty: float | Tensor) -> Tensor:
    """Share of [x - footprint/2, x + footprint/2] covered by bars [0, duty) of every unit period."""
    width = (footprint / period).clamp_min(1e-4)
    low, high = x / period - 0.5 * width, x / period + 0.5 * width
    return (_bars(high, duty) - _bars(low, duty)) / width


def _bars(x: Tensor, duty: float | Tensor) -> Tensor:
    whole = x.floor()
    rest = x - whole
    return whole * duty + (rest.clamp(max=duty) if isinstance(duty, float) else torch.minimum(rest, duty))


def bar(x: Tensor, footprint: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Share of the footprint around x that lies in [low, high]."""
    width = footprint.clamp_min(1e-4)
    upper = torch.minimum(x + 0.5 * width, torch.as_tensor(high, dtype=x.dtype))
    lower = torch.maximum(x - 0.5 * width, torch.as_tensor(low, dtype=x.dtype))
    return ((upper - lower) / width).clamp(0.0, 1.0)
