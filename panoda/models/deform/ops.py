"""Deformable convolution: bilinear samples at learned positions, times a weight.

Source: Deformable ConvNets v2 (Zhu et al. 2019). The semantics are those of
``torchvision.ops.deform_conv2d``, which computes on CUDA. On a CPU, where it is several times slower, in
deterministic mode and for exports it is ours, in two steps: all samples as columns (``sampling``, ``traced``),
then one matrix product. There torchvision's serves the tests as an oracle.

Convention: an offset channel pair is (y, x) in pixels of the input, y first; tap k = ky * kernel + kx;
channels 2 * (g * K + k) and the next hold the pair of offset group g, tap k. A sample outside the
image is zero and fades out bilinearly over the last pixel.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from panoda.models.core.products import linear, matmul
from panoda.models.deform import sampling, traced
from panoda.models.deform.sampling_geometry import Geometry
from panoda.models.encoders.layers import exporting, without_autocast

# Up to here gathering single values beats reading rows (measured on a CPU with AVX-512).
_FEW_CHANNELS = 4


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Convolution whose taps are sampled at learned positions.

    Args:
        x: (N, C, H, W). Half precision is sampled in float32: positions need more significant bits.
        offset: (N, 2 * G * k * k, Ho, Wo) in pixels; G offset groups divide C (G = C gives every
            channel positions of its own).
        weight: (D, C, k, k).
        bias: (D,) or None.
        mask: (N, G * k * k, Ho, Wo) factor on every sample.
        stride: Step of the output grid.
        padding: Zero padding.

    Returns:
        (N, D, Ho, Wo) in the dtype of ``weight`` (of autocast, where that is on).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    geometry = Geometry(weight.shape[2], stride, padding)
    groups = offset.shape[1] // (2 * geometry.taps)
    size = geometry.output(x.shape[2:])
    expected = (x.shape[0], groups * geometry.taps, *size)
    if tuple(mask.shape) != expected or tuple(offset.shape[2:]) != size or x.shape[1] % max(groups, 1):
        raise ValueError(
            f"offsets {tuple(offset.shape)} and mask {tuple(mask.shape)} do not fit an input {tuple(x.shape)} and a "
            f"weight {tuple(weight.shape)}; expected (N, 2*G*K, Ho, Wo) and (N, G*K, Ho, Wo) = {expected}"
        )
    if x.is_cuda and not torch.are_deterministic_algorithms_enabled() and not exporting():
        return _by_torchvision(x, offset, mask, weight, bias, geometry)
    return _by_columns(x, offset, mask, weight, bias, groups, geometry)


def _by_torchvision(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """The CUDA kernel of torchvision, in float32; its backward pass is non-deterministic."""
    device = x.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with without_autocast(x):
        exact = torch.promote_types(x.dtype, torch.float32)
        values = (each if each is None else each.to(exact) for each in (x, offset, weight, bias, mask))
        image, positions, kernel, added, factor = values
        out = torchvision.ops.deform_conv2d(
            image,
            positions,
            kernel,
            added,
            stride=geometry.stride,
            padding=geometry.padding,
            mask=factor,
        )
    return out.to(product)


def _by_columns(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    geometry: Geometry,
) -> Tensor:
    """Ours: on every device, with every type, deterministic on a CPU."""
    few, size = x.shape[1] // groups <= _FEW_CHANNELS, offset.shape[2:]
    exact = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x):
        inputs = (x.to(exact), offset.to(exact), mask.to(exact), groups)
        if exporting():
            columns = (traced.gather if few else traced.bag)(*inputs, geometry)
        else:
            columns = (sampling.gather if few else sampling.bag)(*inputs, geometry)
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        columns = columns.to(weight.dtype)
    if few:  # (N, C * K, Ho * Wo)
        out = matmul(weight.flatten(1), columns).unflatten(2, size)
        return out if bias is None else out + bias.to(out.dtype).view(1, -1, 1, 1)
    # (N, Ho * Wo, G * K * C/G), and the weight (D, C, k, k) -> (D, G * K * C/G)
    grouped = weight.reshape(weight.shape[0], groups, -1, geometry.taps).transpose(2, 3).flatten(1)
    return linear(columns, grouped, bias).transpose(1, 2).unflatten(2, size).contiguous()
