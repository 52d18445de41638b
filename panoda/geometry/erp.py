"""Equirectangular (ERP) images: rays, sampling with wrap-around.

Convention:
    Camera axes are x right, y down, z forward. A direction has a longitude ``lon`` in
    [-pi, pi), positive to the right, and a latitude ``lat`` in [-pi/2, pi/2], positive up::

        x = cos(lat) sin(lon)    y = -sin(lat)    z = cos(lat) cos(lon)

    An ERP image spans the full circle: column 0 starts at lon = -pi, the middle column looks
    forward. Rows run from ``lat_top`` down to ``lat_bottom`` (a vertical band when those lie
    inside +-pi/2). The centre of pixel i lies at i + 0.5. Width wraps, height does not. Angles are
    in radians, sizes in pixels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_PI = math.pi / 2

FULL_CIRCLE_DEG = 359.5
"""Panoramas at least this wide close around the circle; the gap is that of a few pixels cut off."""


def erp_pixel_rays(
    x: Tensor, y: Tensor, *, height: int, width: int, lat_top: float = HALF_PI, lat_bottom: float = -HALF_PI
) -> Tensor:
    """Unit rays of continuous pixel coordinates x, y (...).

    Returns:
        (..., 3) unit directions in camera axes.
    """
    lon = (x / width - 0.5) * (2 * math.pi)
    lat = lat_top - y / height * (lat_top - lat_bottom)
    return torch.stack((lat.cos() * lon.sin(), -lat.sin(), lat.cos() * lon.cos()), dim=-1)


def pixel_grid(height: int, width: int, *, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The x and y of every pixel centre, each (H, W) float32."""
    y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return grid_x, grid_y


def erp_rays(
    height: int,
    width: int,
    *,
    lat_top: float = HALF_PI,
    lat_bottom: float = -HALF_PI,
    device: torch.device | str | None = None,
) -> Tensor:
    """Unit rays of all pixel centres of an ERP image.

    Returns:
        (H, W, 3) float32 unit directions; convention in the module docstring.

    Example:
        >>> rays = erp_rays(2, 4)
        >>> [round(v, 3) for v in rays[0, 2].tolist()]  # up, ahead, a little to the right
        [0.5, -0.707, 0.5]
    """
    x, y = pixel_grid(height, width, device=device)
    return erp_pixel_rays(x, y, height=height, width=width, lat_top=lat_top, lat_bottom=lat_bottom)


def rays_to_erp(
    rays: Tensor, *, height: int, width: int, lat_top: float = HALF_PI, lat_bottom: float = -HALF_PI
) -> tuple[Tensor, Tensor]:
    """Continuous pixel coordinates of rays (..., 3) of any positive length; the inverse of ``erp_pixel_rays``.

    Returns:
        x in [0, width) and y, each (...); y lies outside [0, height] for rays outside the band.

    Example:
        >>> x, y = rays_to_erp(torch.tensor([0.0, 0.0, 1.0]), height=64, width=128)
        >>> (x.item(), y.item())
        (64.0, 32.0)
    """
    lon = torch.atan2(rays[..., 0], rays[..., 2])
    lat = torch.atan2(-rays[..., 1], torch.hypot(rays[..., 0], rays[..., 2]))
    x = torch.remainder((lon / (2 * math.pi) + 0.5) * width, width)
    y = (lat_top - lat) / (lat_top - lat_bottom) * height
    return x, y


def sample_erp(
    image: Tensor,
    rays: Tensor,
    *,
    lat_top: float = HALF_PI,
    lat_bottom: float = -HALF_PI,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    fill: float = 0.0,
) -> Tensor:
    """Look an ERP image up along rays, across the seam without a break.

    Args:
        image: (B, C, H, W); any dtype (integers come back rounded, labels want ``nearest``).
        rays: (h, w, 3) directions of any positive length.
        fill: Value for rays above or below the band.

    Returns:
        (B, C, h, w) in the dtype of ``image``.

    Example:
        >>> image = torch.arange(8.0).expand(1, 1, 4, 8)
        >>> seam = torch.tensor([0.0, 0.0, -1.0]).expand(1, 1, 3)  # backwards: columns 7 and 0 meet
        >>> round(sample_erp(image, seam).item(), 3)
        3.5
    """
    height, width = image.shape[-2:]
    x, y = rays_to_erp(rays, height=height, width=width, lat_top=lat_top, lat_bottom=lat_bottom)
    padded = torch.cat((image[..., -1:], image, image[..., :1]), dim=-1)  # (B, C, H, W + 2)
    grid = torch.stack((2 * (x + 1) / (width + 2) - 1, 2 * y / height - 1), dim=-1)
    found = grid_sample_any(padded, grid.expand(image.shape[0], *grid.shape), mode=mode)
    return found.masked_fill((y < 0) | (y > height), fill)


def grid_sample_any(image: Tensor, grid: Tensor, *, mode: str) -> Tensor:
    """grid_sample for any dtype: edges repeat, integers are rounded."""
    work = image if image.is_floating_point() else image.float()
    out = F.grid_sample(work, grid.to(work.dtype), mode=mode, padding_mode="border", align_corners=False)
    return out if image.is_floating_point() else out.round().to(image.dtype)


def is_full_circle(projection: str, fov_x_deg: float) -> bool:
    """Whether an image's columns wrap around.

    Example:
        >>> is_full_circle("erp", 359.9), is_full_circle("erp", 180.0), is_full_circle("pinhole", 90.0)
        (True, False, False)
    """
    return projection == "erp" and fov_x_deg >= FULL_CIRCLE_DEG
