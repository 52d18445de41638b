"""Corrected perspective tiles laid back onto their panorama."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoda.annotation.task import Tile
from panoda.deployment.measures import strips
from panoda.deployment.view import View
from panoda.geometry.pinhole import rays_to_pinhole, view_rotation


@dataclass(frozen=True)
class Corrected:
    """A tile with its labels (s, s) uint8: as exported, and as they came back."""

    tile: Tile
    before: np.ndarray
    after: np.ndarray


def lay_back(label: np.ndarray, view: View, tiles: Sequence[Corrected]) -> np.ndarray:
    """The panorama's label with what the annotators changed.

    Each pixel looks up the nearest pixel of the tiles. Where none of them was changed there, it stays as it is; where
    several were, the one counts whose centre is nearest.

    Args:
        label: (H, W) uint8 of the panorama, as exported.
        view: The part of the sphere that it shows.

    Returns:
        (H, W) uint8.
    """
    height, width = label.shape
    area, result = view.area(height, width), label.copy()
    changed = [(one, one.before != one.after) for one in tiles]
    changed = [(one, where) for one, where in changed if where.any()]
    for rows in strips(height if changed else 0, width):
        rays = area.rays(height, width, rows) @ view.turn.T
        nearest = np.full((len(rows), width), -np.inf, dtype=np.float32)
        for one, where in changed:
            side = one.tile.side
            direction = {
                "azimuth": math.radians(one.tile.azimuth_deg),
                "elevation": math.radians(one.tile.elevation_deg),
            }
            fov = math.radians(one.tile.fov_deg)
            x, y, inside = rays_to_pinhole(rays, height=side, width=side, fov_x=fov, **direction)
            column, row = (place.floor().clamp(0, side - 1).long().numpy() for place in (x, y))
            near = (rays @ view_rotation(**direction)[:, 2]).numpy()  # cosine of the angle to its centre
            taken = inside.numpy() & where[row, column] & (near > nearest)
            result[rows.start : rows.stop][taken] = one.after[row, column][taken]
            nearest[taken] = near[taken]
    return result
