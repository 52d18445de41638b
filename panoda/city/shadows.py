"""Height maps of what stands between the ground and a parallel light."""

from __future__ import annotations

import torch
from torch import Tensor

from panoda.city.primitives import Kind, Scene
from panoda.city.trace import BATCH, intersect, to_unit_shapes

_TILE = 16


def occluder_height(scene: Scene, towards: Tensor, *, extent: float, cells: int) -> Tensor:
    """Map of how far up along a parallel beam the last solid lies, for every ground cell.

    A point p casts onto the cell of q = p.xy - towards.xy / towards.z * p.z and lies in shadow
    when p.z is below the map's value there.

    Args:
        towards: (3,) unit direction towards the light, z > 0.
        extent: Half side of the square map around the origin in metres.
        cells: Cells per side, a multiple of 16.

    Returns:
        (cells, cells) heights in metres (row = y, column = x), 0 where nothing stands.
    """
    tiles, step = cells // _TILE, 2 * extent / cells
    edge = torch.arange(tiles) * (_TILE * step) - extent
    pairs = _cast_pairs(scene, towards, edge, size=_TILE * step)
    starts = _cell_points(edge, step=step)  # (tiles^2, _TILE^2, 3)
    top = torch.zeros(starts.shape[:2])
    beam = torch.einsum("nij,j->ni", scene.to_local, towards)
    batch = max(1, BATCH // _TILE**2)
    start = 0
    for kind, end in zip(Kind, scene.kind_ends, strict=True):
        group, index = pairs[:, start:end].nonzero(as_tuple=True)
        index = index + start
        start = end
        for g, n in zip(group.split(batch), index.split(batch), strict=True):
            local = to_unit_shapes(scene.to_local[n], starts[g] - scene.centre[n][:, None])
            near, far = intersect(kind, local, beam[n].T[:, :, None], scene, n, pixel_angle=0.0)
            height = torch.where((near < far) & (far > 0), far * towards[2], 0.0)
            top.scatter_reduce_(0, g[:, None].expand_as(height), height, "amax")
    return top.view(tiles, tiles, _TILE, _TILE).permute(0, 2, 1, 3).reshape(cells, cells)


def _cast_pairs(scene: Scene, towards: Tensor, edge: Tensor, *, size: float) -> Tensor:
    """(tiles^2, N) bool: tiles of the ground that a primitive's bounding box may shade."""
    corners = scene.corners()
    cast = corners[..., :2] - corners[..., 2:] * (towards[:2] / towards[2])
    low, high = cast.amin(1), cast.amax(1)
    over = (low <= edge[:, None, None] + size) & (high >= edge[:, None, None])  # (tiles, N, 2)
    return (over[:, None, :, 1] & over[None, :, :, 0]).flatten(0, 1)


def _cell_points(edge: Tensor, *, step: float) -> Tensor:
    """(tiles^2, _TILE^2, 3) ground points at the centres of all cells, tile by tile."""
    spot = (torch.arange(_TILE) + 0.5) * step
    line = (edge[:, None] + spot).view(-1, _TILE)  # (tiles, _TILE)
    tiles = len(line)
    y = line[:, None, :, None].expand(tiles, tiles, _TILE, _TILE)
    x = line[None, :, None, :].expand(tiles, tiles, _TILE, _TILE)
    return torch.stack((x, y, torch.zeros_like(x)), dim=-1).reshape(tiles * tiles, _TILE**2, 3)


def sample_map(height: Tensor, xy: Tensor, level: Tensor, *, extent: float) -> Tensor:
    """Share of the four nearest cells of a height map that are higher than ``level``, weighted bilinearly.

    Args:
        height: (S, S) map of ``occluder_height``.
        xy: (n, 2) ground points in metres.
        level: (n,) heights in metres.
        extent: Half side of the map in metres.
    """
    cells = height.shape[0]
    p = ((xy + extent) * (cells / (2 * extent)) - 0.5).clamp(0, cells - 1.001)
    low = p.floor()
    f = p - low
    column, row = low[:, 0].to(torch.int64), low[:, 1].to(torch.int64)
    flat, base = height.flatten(), row * cells + column
    over = [(flat[base + shift] > level).to(p.dtype) for shift in (0, 1, cells, cells + 1)]
    upper = torch.lerp(over[0], over[1], f[:, 0])
    lower = torch.lerp(over[2], over[3], f[:, 0])
    return torch.lerp(upper, lower, f[:, 1])
