"""Bilinear samples at learned positions: the custom operators under ``deform_conv2d``.

Positions stay in pixels, and values are blended in torchvision's order of operations, so samples
equal its bit for bit. The round trip through ``grid_sample``'s normalised coordinates would cost
1e-5 pixels, which turns offsets of exactly zero into a random choice of one-sided derivative and,
amplified by the layers behind, breaks parity with released weights.

Two samplers, both deterministic on a CPU, keep only their inputs for the backward pass. Where few
channels share positions (RGB) or each has its own (the deformable MLPs), values are gathered one by
one, in tiles that fit a CPU's cache. Where many channels share positions, they are read as rows of
a channels-last table by ``embedding_bag`` (a bag is the four corners of a sample, weighted), and
the gradient of the table is the transposed bag. Both are custom operators, so torch.compile takes
them whole. Offsets and groups are laid out as in ``panoda.models.deform.ops``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from panoda.models.deform.sampling_geometry import (
    MARGIN,
    Corners,
    Geometry,
    padded,
    padded_size,
    steps,
    unpadded,
)

# Values in one tile on a CPU: just below the size from which PyTorch spreads an elementwise operation
# over threads. A tile stays in the cache, needs no fresh memory from the system, and none of its many
# small operations waits for another thread, which on a busy machine costs more than all the work.
_TILE = 32767


# --- few channels on each set of positions: gather ------------------------------------------------


class _Tile(NamedTuple):
    """Some (image, group) rows and taps; tensors are (R, T * Ho * Wo)."""

    rows: slice
    taps: slice
    first: Tensor  # int64
    corners: Corners
    mask: Tensor


def _tiles(x: Tensor, offset: Tensor, mask: Tensor, groups: int, geometry: Geometry) -> Iterator[_Tile]:
    """Cut all samples into tiles; one tile on other devices than the CPU."""
    rows, taps, (height, width) = x.shape[0] * groups, geometry.taps, offset.shape[2:]
    offsets = offset.reshape(rows, taps, 2, height * width).permute(2, 0, 1, 3)
    masks = mask.reshape(rows, taps, height * width)
    base = geometry.positions((height, width), offset).flatten(2).unsqueeze(1)  # (2, 1, K, Ho * Wo)
    fitting = max(1, _TILE // (height * width)) if x.device.type == "cpu" else rows * taps
    tile_taps, tile_rows = min(fitting, taps), max(1, fitting // taps)
    for row in range(0, rows, tile_rows):
        for tap in range(0, taps, tile_taps):
            at, of = slice(row, row + tile_rows), slice(tap, tap + tile_taps)
            corners = Corners.of(offsets[:, at, of], base[:, :, of], x.shape[2:]).flatten(1)
            yield _Tile(at, of, corners.start.long(), corners, masks[at, of].flatten(1))


_FORWARD = "(Tensor x, Tensor offset, Tensor mask, int groups, int[] geometry) -> Tensor"
_BACKWARD = (
    "(Tensor grad, Tensor x, Tensor offset, Tensor mask, int groups, int[] geometry, bool with_x)"
    " -> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("panoda::deform_gather", mutates_args=(), schema=_FORWARD)
def gather(x: Tensor, offset: Tensor, mask: Tensor, groups: int, geometry: Sequence[int]) -> Tensor:
    """Samples (N, C * K, Ho * Wo)."""
    shape = Geometry(*geometry)
    flat = padded(x).reshape(x.shape[0] * groups, x.shape[1] // groups, -1)
    samples = flat.new_empty(*flat.shape[:2], shape.taps, offset.shape[2] * offset.shape[3])
    for tile in _tiles(x, offset, mask, groups, shape):
        shares = tile.corners.shares()
        for channel in range(flat.shape[1]):
            # In torchvision's order of operations and with all its roundings, which addcmul would skip.
            own = flat[tile.rows, channel]
            parts = [own[:, step:].gather(1, tile.first) for step in steps(x)]
            value = parts[0].mul_(shares[0])
            for part, share in zip(parts[1:], shares[1:], strict=True):
                value.add_(part.mul_(share))
            samples[tile.rows, channel, tile.taps] = value.mul_(tile.mask).unflatten(
                1, (-1, samples.shape[3])
            )
    return samples.reshape(x.shape[0], -1, samples.shape[3])


@torch.library.custom_op("panoda::deform_gather_backward", mutates_args=(), schema=_BACKWARD)
def _gather_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    groups: int,
    geometry: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless with_x), offset and mask."""
    shape, pixels = Geometry(*geometry), offset.shape[2] * offset.shape[3]
    flat = padded(x).reshape(x.shape[0] * groups, x.shape[1] // groups, -1)
    grad = grad.reshape(*flat.shape[:2], shape.taps, pixels)
    grad_flat = torch.zeros_like(flat) if with_x else flat.new_empty(0)
    grad_offset = offset.new_empty(flat.shape[0], shape.taps, 2, pixels)
    grad_mask = offset.new_empty(flat.shape[0], shape.taps, pixels)
    for tile in _tiles(x, offset, mask, groups, shape):
        at, of = tile.rows, tile.taps
        products: list[Tensor] = []  # gradient times corner, summed over channels
        for channel in range(flat.shape[1]):
            own = grad[at, channel, of].flatten(1)
            parts = [flat[at, channel, step:].gather(1, tile.first).mul_(own) for step in steps(x)]
            products = [p.add_(q) for p, q in zip(products, parts, strict=True)] if products else parts
            if with_x:
                own = own * tile.mask
                for step, share in zip(steps(x), tile.corners.shares(), strict=True):
                    grad_flat[at, channel, step:].scatter_add_(1, tile.first, share.mul_(own))
        value, *along = tile.corners.surface(products)
        for axis, slope in enumerate(along):
            grad_offset[at, of, axis] = slope.mul_(tile.mask).unflatten(1, (-1, pixels))
        grad_mask[at, of] = value.unflatten(1, (-1, pixels))
    if with_x:
        grad_flat = unpadded(grad_flat.reshape(*x.shape[:2], *padded_size(x))).contiguous()
    return grad_flat, grad_offset.reshape(offset.shape), grad_mask.reshape(mask.shape)


@gather.register_fake
def _gather_fake(x: Tensor, offset: Tensor, mask: Tensor, groups: int, geometry: Sequence[int]) -> Tensor:
    taps = Geometry(*geometry).taps
    return x.new_empty(x.shape[0], x.shape[1] * taps, offset.shape[2] * offset.shape[3])


# --- many channels on each set of positions: bags -------------------------------------------------


def _bag_corners(offset: Tensor, geometry: Geometry, size: Sequence[int], groups: int) -> Corners:
    """Corners of the samples in the order (N, Ho, Wo, G, K), flat, as rows of the table."""
    n, _, height, width = offset.shape
    offsets = offset.reshape(n, groups, geometry.taps, 2, height, width).permute(3, 0, 4, 5, 1, 2)
    base = geometry.positions((height, width), offset).permute(0, 2, 3, 1)[:, None, :, :, None]
    corners = Corners.of(offsets, base, size)
    pixels = (size[0] + 2 * MARGIN) * (size[1] + 2 * MARGIN)
    dtype = torch.int32 if n * groups * pixels < 2**31 else torch.int64
    map_start = torch.arange(n * groups, device=offset.device, dtype=dtype) * pixels
    return corners._replace(start=corners.start + map_start.reshape(n, 1, 1, groups, 1)).flatten(0)


def _bags(corners: Corners, x: Tensor) -> Tensor:
    """(P, 4) table rows of the corners of every sample."""
    return torch.stack([corners.start + step for step in steps(x)], dim=-1)


def _weights(corners: Corners, flat_mask: Tensor) -> Tensor:
    """(P, 4) factors on those rows."""
    return torch.stack(corners.shares(), dim=-1) * flat_mask[:, None]


def _table(x: Tensor, groups: int) -> Tensor:
    """(N * G * padded pixels, C / G)."""
    return padded(x).unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2).reshape(-1, x.shape[1] // groups)


def _flat_mask(mask: Tensor, groups: int) -> Tensor:
    """In the order of the samples."""
    return None if mask is None else mask.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten()


@torch.library.custom_op("panoda::deform_bag", mutates_args=(), schema=_FORWARD)
def bag(x: Tensor, offset: Tensor, mask: Tensor, groups: int, geometry: Sequence[int]) -> Tensor:
    """Samples (N, Ho * Wo, G * K * C/G)."""
    corners = _bag_corners(offset, Geometry(*geometry), x.shape[2:], groups)
    shares = _weights(corners, _flat_mask(mask, groups))
    bags = _bags(corners, x)
    samples = F.embedding_bag(bags, _table(x, groups), mode="sum", per_sample_weights=shares)
    return samples.reshape(x.shape[0], offset.shape[2] * offset.shape[3], -1)


@torch.library.custom_op("panoda::deform_bag_backward", mutates_args=(), schema=_BACKWARD)
def _bag_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    groups: int,
    geometry: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless with_x), offset and mask."""
    shape = Geometry(*geometry)
    n, _, height, width = offset.shape
    corners, flat = _bag_corners(offset, shape, x.shape[2:], groups), _flat_mask(mask, groups)
    bags, table = _bags(corners, x), _table(x, groups)
    grad = grad.reshape(-1, table.shape[1]).contiguous()
    value, *slopes = corners.surface(_dot_rows(grad, table, bags).T.contiguous().unbind(0))
    along = torch.stack([slope.mul_(flat) for slope in slopes])  # (2, P)
    along = along.reshape(2, n, height, width, groups, shape.taps)
    grad_offset = along.permute(1, 4, 5, 0, 2, 3).reshape(offset.shape).contiguous()
    by_pixel = value.reshape(n, height, width, groups, shape.taps)
    grad_mask = by_pixel.permute(0, 3, 4, 1, 2).reshape(mask.shape).contiguous()
    grad_x = x.new_empty(0)
    if with_x:
        shares = _weights(corners, flat)
        grad_table = _transposed_bag(grad, bags.flatten(), shares.flatten(), rows=table.shape[0])
        by_channel = grad_table.reshape(n, groups, -1, x.shape[3] + 2 * MARGIN, x.shape[1] // groups).permute(
            0, 1, 4, 2, 3
        )
        grad_x = unpadded(by_channel).reshape(x.shape).contiguous()
    return grad_x, grad_offset, grad_mask


@bag.register_fake
def _bag_fake(x: Tensor, offset: Tensor, mask: Tensor, groups: int, geometry: Sequence[int]) -> Tensor:
    taps = Geometry(*geometry).taps
    return x.new_empty(x.shape[0], offset.shape[2] * offset.shape[3], x.shape[1] * taps)


def _dot_rows(grad: Tensor, table: Tensor, bags: Tensor) -> Tensor:
    """(P, C) times the four table rows of every sample -> (P, 4), without materialising those rows."""
    starts = torch.arange(0, bags.numel(), 4, device=bags.device, dtype=bags.dtype)
    owner = torch.arange(bags.numel(), device=bags.device, dtype=bags.dtype) >> 2
    backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return backward(grad, table, bags.flatten(), starts, owner, 0).reshape(bags.shape)


def _transposed_bag(grad: Tensor, index: Tensor, shares: Tensor, *, rows: int) -> Tensor:
    """Sum of shares times grad rows per table row: (P, C) and 4 * P indices -> (rows, C)."""
    ordered, order = index.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(rows, device=index.device, dtype=index.dtype))
    sources, starts = (order >> 2).to(index.dtype), starts.to(index.dtype)
    return F.embedding_bag(sources, grad, starts, mode="sum", per_sample_weights=shares[order])


# --- both -----------------------------------------------------------------------------------------


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    groups: int,
    geometry: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = x.new_empty(x.shape) if with_x else x.new_empty(0)
    return grad_x, offset.new_empty(offset.shape), x.new_empty(mask.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, mask, ctx.groups, ctx.geometry = inputs
    ctx.save_for_backward(x, offset, mask)


def _connect(forward: Any, backward: Any) -> None:
    """Make ``backward`` the gradient of ``forward``."""

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, mask = ctx.saved_tensors
        with_x = ctx.needs_input_grad[0]
        grad_x, grad_offset, grad_mask = backward(grad, x, offset, mask, ctx.groups, ctx.geometry, with_x)
        return grad_x if with_x else None, grad_offset, grad_mask, None, None

    backward.register_fake(_backward_fake)
    forward.register_autograd(gradient, setup_context=_keep_inputs)


_connect(gather, _gather_backward)
_connect(bag, _bag_backward)
