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
them whole. Offsets and groups are laid out as in ``panoda.models.ops``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A position is clamped to [-2, size]; both ends read zeros alone, so values and derivatives vanish.
_MARGIN = 2
# Values per thread in one tile. Larger temporaries leave the cache and, which is worse, are mapped and
# unmapped by the allocator each time; smaller ones pay the overhead of too many calls.
_TILE = 131072


class Geometry(NamedTuple):
    """Kernel, stride, padding and dilation, height before width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def unpacked(cls, numbers: Sequence[int]) -> Geometry:
        """From the eight integers that an operator's schema can carry."""
        pairs = [(numbers[i], numbers[i + 1]) for i in range(0, 8, 2)]
        return cls(*pairs)

    def packed(self) -> list[int]:
        """The eight integers."""
        return [number for pair in self for number in pair]

    @property
    def taps(self) -> int:
        """K."""
        return self.kernel[0] * self.kernel[1]

    def output(self, size: Sequence[int]) -> tuple[int, int]:
        """Output size for an input size."""
        reach = [self.dilation[a] * (self.kernel[a] - 1) + 1 for a in (0, 1)]
        height, width = ((size[a] + 2 * self.padding[a] - reach[a]) // self.stride[a] + 1 for a in (0, 1))
        return height, width

    def base(self, axis: int, out_size: int, like: Tensor) -> Tensor:
        """(K, out_size) positions of all taps along one axis (0 = y), without offsets."""
        taps = torch.arange(self.kernel[axis], device=like.device) * self.dilation[axis] - self.padding[axis]
        taps = taps[:, None].expand(self.kernel) if axis == 0 else taps[None].expand(self.kernel)
        steps = torch.arange(out_size, device=like.device) * self.stride[axis]
        return (taps.reshape(-1, 1) + steps).to(like.dtype)


class _Corners(NamedTuple):
    """Where samples lie: upper left corner in the padded map, and the way on to the lower right one."""

    first: Tensor
    ly: Tensor
    lx: Tensor

    @classmethod
    def of(cls, y: Tensor, x: Tensor, size: Sequence[int]) -> _Corners:
        """Of positions in pixels of a map of ``size``; NaN gives some index and NaN weights."""
        floor_y, floor_x = y.floor(), x.floor()
        # Clamped as integers, where NaN is a number too.
        row, column = floor_y.int().clamp_(-_MARGIN, size[0]), floor_x.int().clamp_(-_MARGIN, size[1])
        width = size[1] + 2 * _MARGIN
        index = column.add_(row, alpha=width).add_(_MARGIN * (width + 1))
        return cls(index, y - floor_y, x - floor_x)

    def blend(
        self, upper_left: Tensor, upper_right: Tensor, lower_left: Tensor, lower_right: Tensor
    ) -> Tensor:
        """Bilinear value, in the order of operations of torchvision, whose rounding parity needs."""
        shares = self.shares()
        value = upper_left * shares[0]
        for corner, share in zip((upper_right, lower_left, lower_right), shares[1:], strict=True):
            value.add_(corner * share)  # addcmul would round once less
        return value

    def slopes(
        self, upper_left: Tensor, upper_right: Tensor, lower_left: Tensor, lower_right: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of the bilinear value along y and x."""
        upper = torch.lerp(upper_left, upper_right, self.lx)
        along_y = torch.lerp(lower_left, lower_right, self.lx) - upper
        return along_y, torch.lerp(upper_right - upper_left, lower_right - lower_left, self.ly)

    def shares(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights of the four corners; they sum to 1."""
        my, mx = 1 - self.ly, 1 - self.lx
        return my * mx, my * self.lx, self.ly * mx, self.ly * self.lx


# --- few channels on each set of positions: gather ------------------------------------------------


class _Tile(NamedTuple):
    """Some (image, group) rows and taps."""

    rows: slice
    taps: slice
    corners: _Corners  # (R, 1, T * Ho * Wo)
    mask: Tensor | None  # likewise


def _tiles(
    x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Geometry
) -> Iterator[_Tile]:
    """Cut all samples so that a tile's temporaries stay in the cache; one tile on other devices."""
    rows, taps, (height, width) = x.shape[0] * groups, geometry.taps, offset.shape[2:]
    offsets = offset.reshape(rows, taps, 2, height, width)
    masks = None if mask is None else mask.reshape(rows, taps, height * width)
    base_y = geometry.base(0, height, offset).unsqueeze(-1)  # (K, Ho, 1)
    base_x = geometry.base(1, width, offset).unsqueeze(1)  # (K, 1, Wo)
    values = height * width * (x.shape[1] // groups)
    fitting = max(1, _TILE * torch.get_num_threads() // values) if x.device.type == "cpu" else rows * taps
    tile_taps, tile_rows = min(fitting, taps), max(1, fitting // taps)
    for row in range(0, rows, tile_rows):
        for tap in range(0, taps, tile_taps):
            at, of = slice(row, row + tile_rows), slice(tap, tap + tile_taps)
            y = (offsets[at, of, 0] + base_y[of]).flatten(1).unsqueeze(1)
            x_ = (offsets[at, of, 1] + base_x[of]).flatten(1).unsqueeze(1)
            corners = _Corners.of(y, x_, (x.shape[2], x.shape[3]))
            corners = corners._replace(first=corners.first.long())
            yield _Tile(at, of, corners, None if masks is None else masks[at, of].flatten(1).unsqueeze(1))


def _corner_values(flat: Tensor, index: Tensor, row: int) -> list[Tensor]:
    """(R, C / G, padded pixels) and (R, 1, P) -> four (R, C / G, P)."""
    index = index.expand(-1, flat.shape[1], -1)
    return [flat[..., step:].gather(2, index) for step in (0, 1, row, row + 1)]


_FORWARD = "(Tensor x, Tensor offset, Tensor? mask, int groups, int[] geometry) -> Tensor"
_BACKWARD = (
    "(Tensor grad, Tensor x, Tensor offset, Tensor? mask, int groups, int[] geometry, bool with_x)"
    " -> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("panoda::deform_gather", mutates_args=(), schema=_FORWARD)
def gather(x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Sequence[int]) -> Tensor:
    """Samples (N, C * K, Ho * Wo)."""
    shape = Geometry.unpacked(geometry)
    flat = _padded(x).reshape(x.shape[0] * groups, x.shape[1] // groups, -1)
    samples = flat.new_empty(*flat.shape[:2], shape.taps, offset.shape[2] * offset.shape[3])
    for tile in _tiles(x, offset, mask, groups, shape):
        values = _corner_values(flat[tile.rows], tile.corners.first, _row(x))
        value = tile.corners.blend(*values)
        target = samples[tile.rows, :, tile.taps]
        target.copy_((value if tile.mask is None else value * tile.mask).reshape(target.shape))
    return samples.reshape(x.shape[0], -1, samples.shape[-1])


@torch.library.custom_op("panoda::deform_gather_backward", mutates_args=(), schema=_BACKWARD)
def _gather_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    groups: int,
    geometry: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless with_x), offset and mask (empty without one)."""
    shape = Geometry.unpacked(geometry)
    flat = _padded(x).reshape(x.shape[0] * groups, x.shape[1] // groups, -1)
    pixels = offset.shape[2] * offset.shape[3]
    grads = grad.reshape(*flat.shape[:2], shape.taps, pixels)
    grad_flat = torch.zeros_like(flat) if with_x else flat.new_empty(0)
    grad_offset = offset.new_empty(flat.shape[0], shape.taps, 2, pixels)
    grad_mask = flat.new_empty(0) if mask is None else offset.new_empty(flat.shape[0], shape.taps, pixels)
    for tile in _tiles(x, offset, mask, groups, shape):
        corners, at, of = tile.corners, tile.rows, tile.taps
        own = grads[at, :, of].flatten(2)  # (R, C / G, P)
        products = [_channel_sum(own * v) for v in _corner_values(flat[at], corners.first, _row(x))]
        for axis, slope in enumerate(corners.slopes(*products)):
            target = grad_offset[at, of, axis]
            target.copy_((slope if tile.mask is None else slope * tile.mask).reshape(target.shape))
        if tile.mask is not None:
            grad_mask[at, of] = corners.blend(*products).reshape(grad_mask[at, of].shape)
        if with_x:
            weighted = own if tile.mask is None else own * tile.mask
            index = corners.first.expand(own.shape)
            for step, share in zip((0, 1, _row(x), _row(x) + 1), corners.shares(), strict=True):
                grad_flat[at, :, step:].scatter_add_(2, index, share * weighted)
    if with_x:
        grad_flat = _unpadded(grad_flat.reshape(*x.shape[:2], -1, _row(x))).contiguous()
    return (
        grad_flat,
        grad_offset.reshape(offset.shape),
        grad_mask if mask is None else grad_mask.reshape(mask.shape),
    )


@gather.register_fake
def _gather_fake(
    x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Sequence[int]
) -> Tensor:
    taps = geometry[0] * geometry[1]
    return x.new_empty(x.shape[0], x.shape[1] * taps, offset.shape[2] * offset.shape[3])


# --- many channels on each set of positions: bags -------------------------------------------------


def _bag_corners(offset: Tensor, geometry: Geometry, size: Sequence[int], groups: int) -> _Corners:
    """Corners of the samples in the order (N, Ho, Wo, G, K), flat, as rows of the table."""
    n, _, height, width = offset.shape
    offsets = (
        offset.reshape(n, groups, geometry.taps, 2, height, width).permute(3, 0, 4, 5, 1, 2).contiguous()
    )
    base_y = geometry.base(0, height, offset).T[:, None, None]  # (Ho, 1, 1, K)
    base_x = geometry.base(1, width, offset).T[:, None]  # (Wo, 1, K)
    corners = _Corners.of(offsets[0] + base_y, offsets[1] + base_x, size)
    pixels = (size[0] + 2 * _MARGIN) * (size[1] + 2 * _MARGIN)
    dtype = torch.int32 if n * groups * pixels < 2**31 else torch.int64
    first = torch.arange(n * groups, device=offset.device, dtype=dtype) * pixels
    index = corners.first + first.reshape(n, 1, 1, groups, 1)
    return _Corners(index.flatten(), corners.ly.flatten(), corners.lx.flatten())


def _bags(corners: _Corners, row: int) -> Tensor:
    """(P, 4) table rows of the corners of every sample."""
    return torch.stack([corners.first + step for step in (0, 1, row, row + 1)], dim=-1)


def _weights(corners: _Corners, flat_mask: Tensor | None) -> Tensor:
    """(P, 4) factors on those rows."""
    shares = torch.stack(corners.shares(), dim=-1)
    return shares if flat_mask is None else shares * flat_mask[:, None]


def _table(x: Tensor, groups: int) -> Tensor:
    """(N * G * padded pixels, C / G)."""
    return _padded(x).unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2).reshape(-1, x.shape[1] // groups)


def _flat_mask(mask: Tensor | None, groups: int) -> Tensor | None:
    """In the order of the samples."""
    return None if mask is None else mask.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten()


@torch.library.custom_op("panoda::deform_bag", mutates_args=(), schema=_FORWARD)
def bag(x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Sequence[int]) -> Tensor:
    """Samples (N, Ho * Wo, G * K * C/G)."""
    corners = _bag_corners(offset, Geometry.unpacked(geometry), x.shape[2:], groups)
    shares = _weights(corners, _flat_mask(mask, groups))
    bags = _bags(corners, _row(x))
    samples = F.embedding_bag(bags, _table(x, groups), mode="sum", per_sample_weights=shares)
    return samples.reshape(x.shape[0], offset.shape[2] * offset.shape[3], -1)


@torch.library.custom_op("panoda::deform_bag_backward", mutates_args=(), schema=_BACKWARD)
def _bag_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    groups: int,
    geometry: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless with_x), offset and mask (empty without one)."""
    shape = Geometry.unpacked(geometry)
    n, _, height, width = offset.shape
    corners, flat = _bag_corners(offset, shape, x.shape[2:], groups), _flat_mask(mask, groups)
    bags, table = _bags(corners, _row(x)), _table(x, groups)
    grad = grad.reshape(-1, table.shape[1]).contiguous()
    products = [product.contiguous() for product in _dot_rows(grad, table, bags).unbind(1)]
    along = torch.stack(corners.slopes(*products))  # (2, P)
    along = (along if flat is None else along * flat).reshape(2, n, height, width, groups, shape.taps)
    grad_offset = along.permute(1, 4, 5, 0, 2, 3).reshape(offset.shape).contiguous()
    grad_mask, grad_x = x.new_empty(0), x.new_empty(0)
    if mask is not None:
        by_pixel = corners.blend(*products).reshape(n, height, width, groups, shape.taps)
        grad_mask = by_pixel.permute(0, 3, 4, 1, 2).reshape(mask.shape).contiguous()
    if with_x:
        shares = _weights(corners, flat)
        grad_table = _transposed_bag(grad, bags.flatten(), shares.flatten(), rows=table.shape[0])
        by_channel = grad_table.reshape(n, groups, -1, _row(x), x.shape[1] // groups).permute(0, 1, 4, 2, 3)
        grad_x = _unpadded(by_channel).reshape(x.shape).contiguous()
    return grad_x, grad_offset, grad_mask


@bag.register_fake
def _bag_fake(x: Tensor, offset: Tensor, mask: Tensor | None, groups: int, geometry: Sequence[int]) -> Tensor:
    taps = geometry[0] * geometry[1]
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
    mask: Tensor | None,
    groups: int,
    geometry: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = x.new_empty(x.shape) if with_x else x.new_empty(0)
    return grad_x, offset.new_empty(offset.shape), x.new_empty(0 if mask is None else mask.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, mask, ctx.groups, ctx.geometry = inputs
    ctx.save_for_backward(x, offset, mask)


def _connect(forward: Any, backward: Any) -> None:
    """Make ``backward`` the gradient of ``forward``."""

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, mask = ctx.saved_tensors
        with_x = ctx.needs_input_grad[0]
        grad_x, grad_offset, grad_mask = backward(grad, x, offset, mask, ctx.groups, ctx.geometry, with_x)
        return grad_x if with_x else None, grad_offset, None if mask is None else grad_mask, None, None

    backward.register_fake(_backward_fake)
    forward.register_autograd(gradient, setup_context=_keep_inputs)


_connect(gather, _gather_backward)
_connect(bag, _bag_backward)


def _channel_sum(x: Tensor) -> Tensor:
    """(R, C, P) -> (R, 1, P)."""
    return x if x.shape[1] == 1 else x.sum(1, keepdim=True)


def _row(x: Tensor) -> int:
    """Pixels in a padded row."""
    return x.shape[3] + 2 * _MARGIN


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (_MARGIN,) * 4)


def _unpadded(x: Tensor) -> Tensor:
    return x[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
