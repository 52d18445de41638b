"""Tilted cameras: panoramas turned about a random horizontal axis, as a hand or a slope does it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from panoda.data.loading.loader import Batch
from panoda.data.loading.prepared import PreparedSplit
from panoda.geometry.erp import erp_pixel_rays, grid_sample_any, rays_to_erp
from panoda.labels import IGNORE_INDEX
from panoda.system.shares import rows


class Tilt:
    """Turns samples of a split of full circles; what their panoramas do not show is ignored.

    Attributes:
        largest: Largest angle in radians; each sample draws one from 0 on, and the direction.
    """

    def __init__(self, split: PreparedSplit, largest_deg: float) -> None:
        """Set up.

        Raises:
            ValueError: panoramas that are no full circle.
        """
        if not split.full_circle:
            raise ValueError(
                f"{split.folder}: tilt needs panoramas of the full circle, found {split.projection} images "
                f"{split.fov_x_deg:g} degrees wide; set adapt.tilt to 0"
            )
        self.largest = math.radians(largest_deg)
        self.whole: dict[str, Any] = {
            "height": split.height,
            "width": split.width,
            "lat_top": math.radians(split.lat_top_deg),
            "lat_bottom": math.radians(split.lat_bottom_deg),
        }

    def __call__(self, image: Tensor, maps: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Turn samples and their maps alike.

        Args:
            image: (B, 3, H, W).
            maps: (B, M, H, W) int64; 255 where the turned camera sees what the sample does not show.
            batch: The samples' batch, whose ``rows`` and ``columns`` say what they show.

        Returns:
            image and maps of the same shapes.
        """
        drawn = rows(lambda n: torch.rand(n, 2, device=image.device), image.shape[0])
        with torch.autocast(image.device.type, enabled=False):
            rotation = tilt_rotation(drawn[:, 0] * 2 * math.pi, drawn[:, 1] * self.largest)
            y, x = (batch[name].to(image.device, non_blocking=True) for name in ("rows", "columns"))
            rays = erp_pixel_rays(*torch.broadcast_tensors(x[:, None, :], y[:, :, None]), **self.whole)
            x_seen, y_seen = rays_to_erp(rays @ rotation[:, None].transpose(-1, -2), **self.whole)
            across = _index(x_seen, x, period=self.whole["width"]) / image.shape[-1]
            down = _index(y_seen, y) / image.shape[-2]
            grid = 2 * torch.stack((across, down), dim=-1) - 1
            seen = (grid.abs() <= 1).all(dim=-1)
            grid = grid.where(seen[..., None], torch.zeros_like(grid))
        turned = grid_sample_any(image, grid, mode="bilinear")
        turned_maps = grid_sample_any(maps, grid, mode="nearest")
        return turned, turned_maps.masked_fill(~seen[:, None], IGNORE_INDEX)


def tilt_rotation(azimuth: Tensor, angle: Tensor) -> Tensor:
    """Rotations from tilted to upright camera axes: the camera leans by ``angle`` towards ``azimuth``.

    Args:
        azimuth: (B,) radians, positive to the right.
        angle: (B,) radians; positive looks down at the azimuth.

    Returns:
        (B, 3, 3).
    """
    # Rodrigues' formula about the horizontal axis at right angles to the azimuth.
    zero = torch.zeros_like(azimuth)
    x, z = azimuth.cos(), -azimuth.sin()
    cross = torch.stack((zero, -z, zero, z, zero, -x, zero, x, zero), dim=-1).view(-1, 3, 3)
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3, device=azimuth.device) - sin * cross + (1 - cos) * cross @ cross


def _index(place: Tensor, shown: Tensor, *, period: int | None = None) -> Tensor:
    """Where places of the whole image (B, H, W) lie in a sample that shows ``shown`` (B, N) of it.

    In pixels of the sample, centres at + 0.5; with ``period`` (pixels around the circle) as near to the middle
    of what it shows as can be.
    """
    step = shown.diff(dim=1).nanmean(dim=1)[:, None, None]
    number = torch.arange(shown.shape[1], device=shown.device) + 0.5
    first = (shown - step[..., 0] * number).nanmean(dim=1)[:, None, None]
    index = (place - first) / step
    if period is None:
        return index
    middle = torch.where(shown.isfinite(), number, torch.nan).nanmean(dim=1)[:, None, None]
    turn = (period / step).abs()
    return middle + torch.remainder(index - middle + turn / 2, turn) - turn / 2
