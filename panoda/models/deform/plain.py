"""The deformable convolution in two steps: all samples as columns, then one matrix product.

On every device, with every type, deterministic on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panoda.models.core.products import linear, matmul
from panoda.models.deform import sampling, traced
from panoda.models.deform.sampling_geometry import Geometry
from panoda.models.encoders.layers import exporting, without_autocast

# Up to here gathering single values beats reading rows (measured on a CPU with AVX-512).
_FEW_CHANNELS = 4


def forward(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    geometry: Sequence[int],
) -> Tensor:
    """(N, D, Ho, Wo); arguments as in ``panoda.models.deform.ops.deform_conv2d``, checked there."""
    few, columns = _columns(x, offset, mask, groups, geometry)
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        columns = columns.to(weight.dtype)
    size = offset.shape[2:]
    if few:  # (N, C * K, Ho * Wo)
        out = matmul(weight.flatten(1), columns).unflatten(2, size)
        return out if bias is None else out + bias.to(out.dtype).view(1, -1, 1, 1)
    # (N, Ho * Wo, G * K * C/G)
    return linear(columns, _by_group(weight, groups), bias).transpose(1, 2).unflatten(2, size).contiguous()


def _columns(
    x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Sequence[int]
) -> tuple[bool, Tensor]:
    """Whether few channels share positions, and the samples in the order that suits them."""
    few = x.shape[1] // groups <= _FEW_CHANNELS
    with without_autocast(x):
        inputs = _exact(x, offset, mask)
        if exporting():
            shape = Geometry.unpacked(geometry)
            return few, (traced.gather if few else traced.bag)(*inputs, groups, shape)
        return few, (sampling.gather if few else sampling.bag)(*inputs, groups, list(geometry))


def _exact(x: Tensor, offset: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values and positions in float32, or float64 where x has it."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype), offset.to(dtype), None if mask is None else mask.to(dtype)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """(D, C, kh, kw) -> (D, G * K * C/G)."""
    return weight.reshape(weight.shape[0], groups, -1, weight[0, 0].numel()).transpose(2, 3).flatten(1)
