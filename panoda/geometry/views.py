"""Overlapping pinhole views over a panorama, and what was computed on them laid back onto it.

Convention: as in ``panoda.geometry.pinhole``. Views of one pitch stand in a ring, evenly spaced from azimuth 0,
at most ``SPACING`` of their field of view apart on the sphere. Views are square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panoda.geometry.erp import HALF_PI, erp_rays, grid_sample_any
from panoda.geometry.pinhole import erp_to_pinhole, rays_to_pinhole

SPACING = 2 / 3
"""Largest step between neighbours of a ring, as a share of the field of view."""
SURE = 0.1
"""Weight of views from which on they count with their whole share; below it the whole panorama fills in."""
UNIT = 32
"""Sides of views are multiples of the models' largest stride."""


@dataclass(frozen=True)
class Views:
    """Perspective views of a panorama.

    Attributes:
        fov_deg: Field of view of each, across and down, in degrees.
        pixels_per_degree: Pixels at the centre of a view; None = those of the panorama.
        pitches: Elevations of the rings of views in degrees, positive up.
        share: Of the views in the result; the rest is the whole panorama's.
    """

    fov_deg: float = 90.0
    pixels_per_degree: float | None = None
    pitches: tuple[float, ...] = (0.0,)
    share: float = 0.5

    def directions(self) -> list[tuple[float, float]]:
        """(azimuth, elevation) of every view in radians.

        Example:
            >>> [(round(math.degrees(a)), round(math.degrees(e))) for a, e in Views(fov_deg=120).directions()]
            [(0, 0), (72, 0), (144, 0), (216, 0), (288, 0)]
        """
        found = []
        for pitch in self.pitches:
            elevation = math.radians(pitch)
            around = 360 * math.cos(elevation)
            count = max(1, math.ceil(around / (self.fov_deg * SPACING) - 1e-6))
            found += [(2 * math.pi * k / count, elevation) for k in range(count)]
        return found

    def side(self, panorama_width: int) -> int:
        """Pixels of a view's side, in whole units.

        Example:
            >>> Views(fov_deg=90).side(1024)  # 2.84 pixels per degree: a focal length of 163 pixels
            320
        """
        per_degree = panorama_width / 360 if self.pixels_per_degree is None else self.pixels_per_degree
        focal = per_degree * 180 / math.pi
        exact = 2 * focal * math.tan(math.radians(self.fov_deg) / 2)
        return max(1, round(exact / UNIT)) * UNIT


def over_views(
    images: Tensor,
    function: Callable[[Tensor], Tensor],
    views: Views,
    *,
    lat_top: float = HALF_PI,
    lat_bottom: float = -HALF_PI,
    fill: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Apply a function to every view and lay the results back onto the panorama, averaged where views overlap.

    A view's weight is 1 at its centre and falls linearly to 0 at its borders, in both directions.

    Args:
        images: (B, C, H, W) full circles, any dtype.
        function: Views (B, C, s, s) -> values (B, K, s, s), floating point.
        views: Where the views are.
        lat_top: Latitude of the images' upper edge in radians.
        lat_bottom: Latitude of the images' lower edge in radians.
        fill: Value of what views show above and below the images.

    Returns:
        values (B, K, H, W) float32, zero where no view reaches, and the sum of weights (H, W).

    Example:
        >>> images = torch.full((1, 3, 32, 64), 7.0)
        >>> values, weight = over_views(images, lambda view: view, Views(pitches=(-60, 0, 60)))
        >>> bool((weight > 0).all()), round(values.mean().item(), 3)
        (True, 7.0)
    """
    height, width = images.shape[-2:]
    side, fov = views.side(width), math.radians(views.fov_deg)
    rays = erp_rays(height=height, width=width, lat_top=lat_top, lat_bottom=lat_bottom, device=images.device)
    total: Tensor | None = None
    weights = torch.zeros(height, width, device=images.device)
    for azimuth, elevation in views.directions():
        place: dict[str, Any] = {
            "height": side,
            "width": side,
            "fov_x": fov,
            "azimuth": azimuth,
            "elevation": elevation,
        }
        view = erp_to_pinhole(images, **place, lat_top=lat_top, lat_bottom=lat_bottom, fill=fill)
        values = function(view).float()
        x, y, inside = rays_to_pinhole(rays, **place)
        across, down = 2 * x / side - 1, 2 * y / side - 1
        weight = ((1 - across.abs()) * (1 - down.abs())).clamp(min=0) * inside
        grid = torch.stack((across, down), dim=-1).where(inside[..., None], torch.zeros(()).to(across))
        laid = grid_sample_any(values, grid.expand(len(values), -1, -1, -1), mode="bilinear")
        total = laid * weight if total is None else total + laid * weight
        weights += weight
    assert total is not None
    return total / weights.clamp(min=1e-6), weights


def mixed(whole: Tensor, values: Tensor, weights: Tensor, share: float) -> Tensor:
    """The whole panorama's values with ``share`` of the views' where these are sure.

    Args:
        whole: (B, K, H, W).
        values: (B, K, H, W) of the views.
        weights: (H, W) sums of weights from ``over_views``; from 0 to ``SURE`` the share grows to its full size.
        share: Of the views, 0..1.
    """
    return torch.lerp(whole, values, share * (weights / SURE).clamp(max=1))
