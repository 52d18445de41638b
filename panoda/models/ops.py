"""Deformable sampling and convolution on bilinear grid sampling.

Source: Deformable ConvNets v2 (Zhu et al. 2019). The semantics are those of
``torchvision.ops.deform_conv2d``, which is several times slower on a CPU and serves the tests as
an oracle.

Convention: an offset channel pair is (y, x) in pixels of the input, y first; tap k = ky * kw + kx;
the channels of offset group g, tap k are ``2 * (g * K + k)`` (y) and the one after it (x). Samples
outside the image are zero, half-outside samples fade out bilinearly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = int | tuple[int, int]


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Tensor:
    """Convolution whose taps are sampled at learned positions.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * G * kh * kw, Ho, Wo) in pixels; G offset groups divide C (G = C gives every
            channel positions of its own).
        weight: (D, C / groups, kh, kw); groups follow from its shape.
        bias: (D,) or None.
        mask: (N, G * kh * kw, Ho, Wo) factor on every sample, or None for 1.
        stride: Step of the output grid, height before width.
        padding: Zero padding.
        dilation: Distance between taps.

    Returns:
        (N, D, Ho, Wo) in the dtype of ``x`` (of autocast, where that is on).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    kernel = (weight.shape[2], weight.shape[3])
    columns = deform_sample(
        x, offset, kernel, mask=mask, stride=stride, padding=padding, dilation=dilation
    )  # (N, C, K, Ho, Wo)
    n, c, k, height, width = columns.shape
    if weight.shape[1] == 0 or c % weight.shape[1] or weight.shape[0] % (c // weight.shape[1]):
        raise ValueError(f"weight {tuple(weight.shape)} does not fit an input of {c} channels")
    groups = c // weight.shape[1]
    columns = columns.reshape(n, groups, (c // groups) * k, height * width)
    if columns.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        columns = columns.to(weight.dtype)
    out = weight.reshape(groups, weight.shape[0] // groups, -1) @ columns  # (N, groups, D/groups, Ho*Wo)
    out = out.reshape(n, weight.shape[0], height, width)
    return out if bias is None else out + bias.to(out.dtype).view(1, -1, 1, 1)


def deform_sample(
    x: Tensor,
    offset: Tensor,
    kernel_size: tuple[int, int],
    *,
    mask: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Tensor:
    """The samples a deformable convolution multiplies with its weight.

    Arguments are those of ``deform_conv2d``.

    Returns:
        (N, C, kh * kw, Ho, Wo); float32 for half-precision inputs, because positions need more than
        the 8 or 11 significant bits of those types.
    """
    n, c, height, width = x.shape
    taps = kernel_size[0] * kernel_size[1]
    groups = _offset_groups(x, offset, mask, taps)
    dtype = torch.promote_types(x.dtype, torch.float32)
    out_size = (offset.shape[2], offset.shape[3])
    ys = _tap_positions(out_size[0], kernel_size[0], _pair(stride)[0], _pair(padding)[0], _pair(dilation)[0])
    xs = _tap_positions(out_size[1], kernel_size[1], _pair(stride)[1], _pair(padding)[1], _pair(dilation)[1])
    # (kh, Ho) and (kw, Wo) -> (K, Ho, Wo) by broadcasting over (kh, kw, Ho, Wo)
    shape = (kernel_size[0], kernel_size[1], *out_size)
    base_y = ys.to(offset.device, dtype)[:, None, :, None].expand(shape).reshape(taps, *out_size)
    base_x = xs.to(offset.device, dtype)[None, :, None, :].expand(shape).reshape(taps, *out_size)
    offsets = offset.to(dtype).reshape(n * groups, taps, 2, *out_size)
    grid = torch.stack(
        (_normalised(offsets[:, :, 1] + base_x, width), _normalised(offsets[:, :, 0] + base_y, height)),
        dim=-1,
    )  # (N*G, K, Ho, Wo, 2), x first as grid_sample wants it
    with torch.autocast(x.device.type, enabled=False):
        samples = F.grid_sample(
            x.to(dtype).reshape(n * groups, c // groups, height, width),
            grid.reshape(n * groups, taps * out_size[0], out_size[1], 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # (N*G, C/G, K*Ho, Wo)
        if mask is not None:
            samples = samples * mask.to(dtype).reshape(n * groups, 1, taps * out_size[0], out_size[1])
    return samples.reshape(n, c, taps, *out_size)


def _tap_positions(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(kernel, size) positions of every tap of every output pixel, without offsets."""
    taps = torch.arange(kernel) * dilation - padding
    return taps[:, None] + torch.arange(size) * stride


def _normalised(position: Tensor, size: int) -> Tensor:
    """Pixel index -> grid_sample's coordinate for align_corners=False."""
    return (2 * position + 1) / size - 1


def _offset_groups(x: Tensor, offset: Tensor, mask: Tensor | None, taps: int) -> int:
    if x.ndim != 4 or offset.ndim != 4 or x.shape[0] != offset.shape[0]:
        raise ValueError(
            f"expected (N,C,H,W) and (N,2*G*K,Ho,Wo), got {tuple(x.shape)}, {tuple(offset.shape)}"
        )
    groups, rest = divmod(offset.shape[1], 2 * taps)
    if rest or groups == 0 or x.shape[1] % groups:
        raise ValueError(
            f"{offset.shape[1]} offset channels do not make 2 per tap of {taps} taps in groups dividing "
            f"{x.shape[1]} channels"
        )
    expected = (offset.shape[0], groups * taps, offset.shape[2], offset.shape[3])
    if mask is not None and tuple(mask.shape) != expected:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {expected}")
    return groups


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
