"""Parts of the sphere as ERP images: rays, sampling, solid angles; and prediction with a level horizon.

Convention: as in ``panoda.geometry.erp``, but an image may show less than the full circle. Its columns run from
``lon_left`` over ``fov_x`` to the right, its rows from ``lat_top`` down to ``lat_bottom``. A camera that was held
tilted by ``pitch`` (its centre above the horizon) and ``roll`` (its right side down, so the horizon turns
counter-clockwise in the image, as in GPano) sees the level ray ``R_x(pitch) R_z(roll) ray_image``. All in radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from panoda.geometry.erp import FULL_CIRCLE_DEG, HALF_PI, grid_sample_any, pixel_grid
from panoda.geometry.pinhole import view_rotation


@dataclass(frozen=True)
class Area:
    """The part of a sphere that an ERP image shows, in radians; the default is the whole."""

    lon_left: float = -math.pi
    fov_x: float = 2 * math.pi
    lat_top: float = HALF_PI
    lat_bottom: float = -HALF_PI

    @property
    def closed(self) -> bool:
        """It is a full circle: its ends meet."""
        return math.degrees(self.fov_x) >= FULL_CIRCLE_DEG

    def rays(self, height: int, width: int, rows: range | None = None) -> Tensor:
        """(H, W, 3) float32 unit rays of the pixel centres, or of some rows of them.

        Example:
            >>> Area(lon_left=0.0, fov_x=math.pi / 2).rays(1, 1)[0, 0].mul(1000).round().tolist()
            [707.0, -0.0, 707.0]
        """
        x, y = pixel_grid(height if rows is None else len(rows), width)
        y = y if rows is None else y + rows.start
        lon = self.lon_left + x / width * self.fov_x
        lat = self.lat_top - y / height * (self.lat_top - self.lat_bottom)
        return torch.stack((lat.cos() * lon.sin(), -lat.sin(), lat.cos() * lon.cos()), dim=-1)

    def sample(
        self,
        image: Tensor,
        rays: Tensor,
        *,
        mode: Literal["bilinear", "nearest"] = "bilinear",
        fill: float = 0.0,
    ) -> Tensor:
        """Look an image of this area up along rays.

        Args:
            image: (B, C, H, W) of any dtype; integers come back rounded.
            rays: (h, w, 3) directions of any positive length.
            mode: nearest for labels.
            fill: Value of rays outside the area.

        Returns:
            (B, C, h, w) in the dtype of ``image``.
        """
        height, width = image.shape[-2:]
        lon = torch.atan2(rays[..., 0], rays[..., 2])
        lat = torch.atan2(-rays[..., 1], torch.hypot(rays[..., 0], rays[..., 2]))
        around = 2 * math.pi if self.closed else self.fov_x
        x = torch.remainder(lon - self.lon_left, 2 * math.pi) / around * width
        y = (self.lat_top - lat) / (self.lat_top - self.lat_bottom) * height
        ends = (image[..., -1:], image[..., :1]) if self.closed else (image[..., :1], image[..., -1:])
        wide = torch.cat((ends[0], image, ends[1]), dim=-1)  # (B, C, H, W + 2)
        grid = torch.stack((2 * (x + 1) / (width + 2) - 1, 2 * y / height - 1), dim=-1)
        found = grid_sample_any(wide, grid.expand(len(image), *grid.shape).to(image.device), mode=mode)
        # Rounding must not lose the rows at the poles.
        outside = (x > width) | (y < -1e-3) | (y > height + 1e-3)
        return found.masked_fill(outside.to(image.device), fill)

    def solid_angles(self, height: int, width: int) -> Tensor:
        """(H,) float64 steradians of one pixel of each row.

        Example:
            >>> round(float(128 * Area().solid_angles(64, 128).sum()), 3)  # 4 pi
            12.566
        """
        edges = torch.linspace(self.lat_top, self.lat_bottom, height + 1, dtype=torch.float64).sin()
        return (edges[:-1] - edges[1:]) * (self.fov_x / width)


WHOLE = Area()
"""The whole sphere."""


def tilt(pitch: float, roll: float) -> Tensor:
    """(3, 3) float32 rotation from the rays of a tilted camera's image to level ones."""
    return view_rotation(elevation=pitch, roll=roll)


def over_level(
    images: Tensor,
    function: Callable[[Tensor, Area], Tensor],
    *,
    area: Area,
    pitch: float,
    roll: float,
    fill: float = 0.0,
) -> Tensor:
    """Turn images until their horizon is level, apply a function, and turn its values back.

    Args:
        images: (B, C, H, W), any dtype, of ``area``.
        function: Level images (B, C, h, w) and the area that they show -> values (B, K, h, w), floating point.
        area: What the tilted images show, about their own axis.
        pitch: Of the camera.
        roll: Of the camera.
        fill: Value where the level images show what the tilted ones do not.

    Returns:
        (B, K, H, W) values at the pixels of ``images``.
    """
    height, width = images.shape[-2:]
    turn = tilt(pitch, roll)
    rays = area.rays(height, width) @ turn.T
    level, size = _around(rays, area)
    turned = area.sample(images, level.rays(*size) @ turn, fill=fill)
    return level.sample(function(turned, level), rays)


def _around(rays: Tensor, area: Area) -> tuple[Area, tuple[int, int]]:
    """The smallest area that holds rays (H, W, 3), and its size at the resolution of ``area``."""
    height, width = rays.shape[:2]
    per_row, per_column = (area.lat_top - area.lat_bottom) / height, area.fov_x / width
    lat = torch.asin((-rays[..., 1]).clamp(-1, 1))
    top = min(float(lat.max()) + per_row, HALF_PI)
    bottom = max(float(lat.min()) - per_row, -HALF_PI)
    left, fov = -math.pi, 2 * math.pi
    if not area.closed:
        middle = rays[height // 2, width // 2]
        centre = math.atan2(float(middle[0]), float(middle[2]))
        lon = torch.atan2(rays[..., 0], rays[..., 2]) - centre
        lon = torch.remainder(lon + math.pi, 2 * math.pi) - math.pi
        first, last = float(lon.min()) - per_column, float(lon.max()) + per_column
        if last - first < math.radians(FULL_CIRCLE_DEG) - 4 * per_column:
            left, fov = centre + first, last - first
    size = (max(32, round((top - bottom) / per_row)), max(32, 4 * round(fov / per_column / 4)))
    return Area(left, fov, top, bottom), size
