"""Position embeddings of plain vision transformers on grids of any height x width, straight or round.

``round`` (``wrap``) is for full panoramas, whose columns lie on a circle: column w is column 0.

- A table over positions (learned or sin-cos) holds samples at the centres of h0 x w0 cells. It is resized by
  timm's antialiased bicubic kernel. Round, the kernel's columns are taken modulo w0: the table is the
  period of a function on the circle, so rolling it by k columns rolls the result by k * w / w0 columns.
- A table over displacements (BEiT) holds one bias per (dy, dx). It is resized by timm's rule, in which near
  displacements keep their places and far ones are stretched geometrically. Round, dx is the way to the
  nearest copy of the column, ((dx + w//2) mod w) - w//2, and the table reaches from -w//2 to w//2.
- A rotary embedding (DINOv3) turns queries and keys by 2 pi x / period, with x from -1 to 1 over the width,
  so that attention depends on differences of x. Round, the 2 / period turns per circle of every band become
  a whole number, the nearest one; bands of less than half a turn then tell nothing about x. Patches relate to
  class and register tokens, which are not turned, by where they are: without a seam, but not rolled along.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_rel import gen_relative_position_index, resize_rel_pos_bias_table
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3, build_sincos2d_pos_embed
from torch import Tensor

from panoda.models.encoders.layers import without_autocast

Grid = tuple[int, int]


def patch_grid(height: int, width: int, patch: int) -> Grid:
    """Patches (height, width) of an image; ValueError where the patch does not divide a side."""
    if height % patch or width % patch or not height or not width:
        near = [max(1, round(side / patch)) * patch for side in (height, width)]
        raise ValueError(
            f"images of {height} x {width} pixels (height x width) are no whole number of patches of {patch}; "
            f"set the crop to multiples of it, such as {near[0]} x {near[1]}"
        )
    return height // patch, width // patch


def resize_table(table: Tensor, old: Grid, new: Grid, *, prefix: int, wrap: bool = False) -> Tensor:
    """Resize a table over positions.

    Args:
        table: (1, prefix + h0 * w0, D), row by row.
        old: h0, w0.
        new: h, w in patches.
        prefix: Leading entries of class and register tokens, kept as they are.

    Returns:
        (1, prefix + h * w, D).
    """
    if not wrap or new == old:
        return resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=prefix)
    body = table[:, prefix:].unflatten(1, old).repeat(1, 1, 3, 1).flatten(1, 2)
    thrice = resample_abs_pos_embed(
        body, new_size=[new[0], 3 * new[1]], old_size=[old[0], 3 * old[1]], num_prefix_tokens=0
    )
    middle = thrice.unflatten(1, (new[0], 3 * new[1]))[:, :, new[1] : 2 * new[1]]
    return torch.cat((table[:, :prefix], middle.flatten(1, 2)), dim=1)


def sincos_table(grid: Grid, channels: int, *, prefix: int) -> Tensor:
    """The fixed 2-D sin-cos table of MAE (arXiv 2111.06377), (1, prefix + h * w, D).

    Half of the channels hold sines, then cosines of x / 10000^(4i/D), the other half those of y; x and y
    count patches from 0. Prefix entries are zero.
    """
    y, x = build_sincos2d_pos_embed(list(grid), channels, interleave_sin_cos=True).chunk(2, dim=1)
    table = torch.cat((x, y), dim=1)[None]
    return torch.cat((table.new_zeros(1, prefix, channels), table), dim=1)


@dataclass(frozen=True)
class Displacements:
    """How a table over displacements (dy, dx) becomes a bias per pair of tokens on one grid.

    Attributes:
        down: (2h - 1, 2 h0 - 1): row h - 1 + dy holds the weights of the table's rows; None for no change.
        across: (2w - 1, 2 w0 - 1), the same for dx.
        pairs: ((h * w + 1)^2,) int32, the resized entry of every pair, the class token first.
    """

    down: Tensor | None
    across: Tensor | None
    pairs: Tensor

    @classmethod
    def between(cls, old: Grid, new: Grid, *, wrap: bool = False) -> Displacements:
        """Prepare tables of h0 x w0 patches for a grid of h x w; with ``wrap`` columns lie on a circle."""
        # int32 halves the memory of what is the largest tensor here.
        pairs = gen_relative_position_index(new, class_token=True).int().flatten()
        if not wrap:
            if new == old:
                return cls(None, None, pairs)
            return cls(_stretch(old[0], new[0]), _stretch(old[1], new[1]), pairs)
        width = new[1]
        reach = width // 2 + 1  # patches of the window that holds the displacements 0..w//2
        rows = torch.eye(2 * old[1] - 1) if reach <= old[1] else _stretch(old[1], reach)
        nearest = (torch.arange(1 - width, width) + width // 2) % width - width // 2
        down = torch.eye(2 * old[0] - 1) if new[0] == old[0] else _stretch(old[0], new[0])
        return cls(down, rows[nearest + rows.shape[0] // 2], pairs)

    def to(self, device: torch.device) -> Displacements:
        """The same on another device."""
        down, across = (None if x is None else x.to(device) for x in (self.down, self.across))
        return Displacements(down, across, self.pairs.to(device))

    def bias(self, table: Tensor, old: Grid) -> Tensor:
        """Attention bias (1, heads, h * w + 1, h * w + 1), queries before keys.

        Args:
            table: ((2 h0 - 1) * (2 w0 - 1) + 3, heads), dy before dx; the last three rows are the biases of
                the class token looking at a patch, of a patch looking at it, and of it looking at itself.
            old: h0, w0.
        """
        flat = table.T
        if self.down is not None and self.across is not None:
            with without_autocast(table):
                body = flat[:, :-3].unflatten(1, (2 * old[0] - 1, 2 * old[1] - 1))
                body = self.down.to(table) @ body @ self.across.to(table).T  # (heads, 2h - 1, 2w - 1)
            flat = torch.cat((body.flatten(1), flat[:, -3:]), dim=1)
        tokens = math.isqrt(len(self.pairs))
        return flat.index_select(1, self.pairs).view(1, -1, tokens, tokens)


def _stretch(old: int, new: int) -> Tensor:
    """Interpolation of displacements along one axis as timm does it, (2 new - 1, 2 old - 1).

    timm interpolates both axes, each on its own, as soon as one changes. The other one goes from 2 to 3 here,
    and its displacement 0 stays in place.
    """
    count = 2 * old - 1
    table = torch.eye(count).repeat_interleave(3, dim=0)  # (y, x) flat, constant in x; one head per y
    resized = resize_rel_pos_bias_table(
        table, new_window_size=(new, 3), new_bias_shape=((2 * new - 1) * 5, count), old_window_size=(old, 2)
    )
    return resized.unflatten(0, (2 * new - 1, 5))[:, 2]


def round_rotation(rope: RotaryEmbeddingDinoV3, grid: Grid) -> Tensor:
    """A DINOv3 rotation whose bands turn a whole number of times around the circle, (h * w, 2 * D).

    Raises:
        ValueError: coordinates that do not span -1..1 over the width.
    """
    if rope.normalize_coords != "separate":
        raise ValueError(f"wrap needs coordinates normalised by the width, not {rope.normalize_coords!r}")
    closed = copy.deepcopy(rope)
    periods: Any = rope.periods
    closed.register_buffer("periods", 2 / torch.round(2 / periods), persistent=False)
    # Of the angles, the first half is that of the first coordinate, height for 'ij'.
    across = torch.arange(rope.dim // 2) >= rope.dim // 4
    if rope.grid_indexing == "xy":
        across = ~across
    across = across.repeat(2) if rope.rotate_half else across.repeat_interleave(2)
    straight, turned = rope.get_embed(list(grid)), closed.get_embed(list(grid))
    return torch.where(across.repeat(2).to(straight.device), turned, straight)
