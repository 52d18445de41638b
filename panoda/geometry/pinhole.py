"""Pinhole (tangent) views: rays, cutting them out of ERP images, and laying them onto the sphere.

Convention:
    Camera axes are x right, y down, z forward; square pixels, the principal point is the image
    centre, and ``fov_x`` is the horizontal field of view in radians. A view is turned against the
    panorama's camera by ``azimuth`` (positive right), then ``elevation`` (positive up), then
    ``roll`` (positive: the view's right side turns down), all in radians::

        ray_panorama = R_y(azimuth) R_x(elevation) R_z(roll) ray_view

    Longitudes, latitudes and ERP pixels follow ``panoda.geometry.erp``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from panoda.geometry.erp import HALF_PI, erp_pixel_rays, grid_sample_any, pixel_grid, sample_erp
from panoda.labels import IGNORE_INDEX


def view_rotation(*, azimuth: float = 0.0, elevation: float = 0.0, roll: float = 0.0) -> Tensor:
    """(3, 3) float32 rotation from view axes to panorama axes; angles in radians."""
    ca, sa = math.cos(azimuth), math.sin(azimuth)
    ce, se = math.cos(elevation), math.sin(elevation)
    cr, sr = math.cos(roll), math.sin(roll)
    about_y = torch.tensor([[ca, 0.0, sa], [0.0, 1.0, 0.0], [-sa, 0.0, ca]], dtype=torch.float64)
    about_x = torch.tensor([[1.0, 0.0, 0.0], [0.0, ce, -se], [0.0, se, ce]], dtype=torch.float64)
    about_z = torch.tensor([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return (about_y @ about_x @ about_z).float()


def focal_length(width: int, fov_x: float) -> float:
    """Focal length in pixels; ValueError unless 0 < fov_x < pi."""
    if not 0.0 < fov_x < math.pi:
        raise ValueError(f"fov_x is {fov_x:.4f}; expected radians between 0 and pi")
    return 0.5 * width / math.tan(0.5 * fov_x)


def pinhole_pixel_rays(
    x: Tensor, y: Tensor, *, height: int, width: int, fov_x: float, **turn: float
) -> Tensor:
    """Unit rays (..., 3) in panorama axes of continuous pixel coordinates x, y (...); ``turn`` as ``view_rotation``."""
    focal = focal_length(width, fov_x)
    rays = torch.stack(((x - 0.5 * width) / focal, (y - 0.5 * height) / focal, torch.ones_like(x)), dim=-1)
    rays = rays / rays.norm(dim=-1, keepdim=True)
    return rays @ view_rotation(**turn).to(rays, non_blocking=True).T


def pinhole_rays(
    height: int,
    width: int,
    *,
    fov_x: float,
    device: torch.device | str | None = None,
    **turn: float,
) -> Tensor:
    """Unit rays of all pixel centres of a pinhole view; ``turn`` as ``view_rotation``.

    Returns:
        (H, W, 3) float32 unit directions in panorama axes.

    Raises:
        ValueError: fov_x outside (0, pi).

    Example:
        >>> rays = pinhole_rays(1, 1, fov_x=1.0, azimuth=math.pi / 2)
        >>> [round(v, 3) + 0.0 for v in rays[0, 0].tolist()]  # the view looks right
        [1.0, 0.0, 0.0]
    """
    x, y = pixel_grid(height, width, device=device)
    return pinhole_pixel_rays(x, y, height=height, width=width, fov_x=fov_x, **turn)


def pinhole_solid_angles(height: int, width: int, *, fov_x: float, rows: range | None = None) -> Tensor:
    """(H, W) float64 steradians of the pixels of a pinhole view, or of some rows of them.

    Raises:
        ValueError: fov_x outside (0, pi).

    Example:
        >>> round(float(pinhole_solid_angles(200, 200, fov_x=math.pi / 2).sum()), 3)  # a face of a cube
        2.094
    """
    focal = focal_length(width, fov_x)
    x, y = pixel_grid(height if rows is None else len(rows), width)
    y = y if rows is None else y + rows.start
    squared = ((x.double() - 0.5 * width) ** 2 + (y.double() - 0.5 * height) ** 2) / focal**2
    return (1 + squared) ** -1.5 / focal**2


def rays_to_pinhole(
    rays: Tensor, *, height: int, width: int, fov_x: float, **turn: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays (..., 3) in panorama axes meet a pinhole view; the inverse of ``pinhole_pixel_rays``.

    Returns:
        x and y, continuous pixel coordinates, and a bool mask of rays that meet the image; each (...).

    Raises:
        ValueError: fov_x outside (0, pi).
    """
    focal = focal_length(width, fov_x)
    local = rays @ view_rotation(**turn).to(rays, non_blocking=True)
    ahead = local[..., 2] > 1e-6
    depth = torch.where(ahead, local[..., 2], torch.ones_like(local[..., 2]))
    x = local[..., 0] / depth * focal + 0.5 * width
    y = local[..., 1] / depth * focal + 0.5 * height
    inside = ahead & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return x, y, inside


def erp_to_pinhole(
    image: Tensor,
    *,
    height: int,
    width: int,
    fov_x: float,
    lat_top: float = HALF_PI,
    lat_bottom: float = -HALF_PI,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    fill: float = 0.0,
    **turn: float,
) -> Tensor:
    """Cut a pinhole (tangent) view out of an ERP image or label (B, C, H, W) of any dtype.

    Args:
        turn: azimuth, elevation and roll of the view, as ``view_rotation`` takes them.

    Returns:
        (B, C, height, width) in the dtype of ``image``.

    Raises:
        ValueError: fov_x outside (0, pi).

    Example:
        >>> panorama = torch.rand(1, 3, 64, 128)
        >>> erp_to_pinhole(panorama, height=32, width=48, fov_x=1.2, azimuth=math.pi).shape
        torch.Size([1, 3, 32, 48])
    """
    rays = pinhole_rays(height, width, fov_x=fov_x, device=image.device, **turn)
    return sample_erp(image, rays, lat_top=lat_top, lat_bottom=lat_bottom, mode=mode, fill=fill)


def pinhole_to_erp(
    image: Tensor,
    label: Tensor,
    *,
    fov_x: float,
    height: int,
    width: int,
    rows: Tensor,
    columns: Tensor,
    lat_top: float = HALF_PI,
    lat_bottom: float = -HALF_PI,
    **turn: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay labelled pinhole images onto parts of an ERP band of ``height`` x ``width`` pixels.

    Args:
        image: (B, C, h, w) pinhole images, any dtype; sampled bilinearly.
        label: (B, h, w) integer labels; sampled nearest.
        rows: (B, h') continuous rows of the band that each result shows, pixel centres at +0.5; nan shows nothing.
        columns: (B, w') likewise; columns wrap around.
        turn: azimuth, elevation and roll of the image's camera, as ``view_rotation`` takes them.

    Returns:
        image (B, C, h', w'), zero outside the view; label (B, h', w'), 255 outside; valid (B, h', w') bool, true
        inside the view.

    Raises:
        ValueError: fov_x outside (0, pi).

    Example:
        >>> image, label = torch.rand(1, 3, 32, 64), torch.zeros(1, 32, 64, dtype=torch.int64)
        >>> whole = {"rows": torch.arange(48)[None] + 0.5, "columns": torch.arange(128)[None] + 0.5}
        >>> _, band, valid = pinhole_to_erp(image, label, fov_x=1.57, height=48, width=128, **whole)
        >>> bool((band[~valid] == 255).all()), bool((band[valid] == 0).all())
        (True, True)
    """
    across, down = torch.broadcast_tensors(columns[:, None, :], rows[:, :, None])
    rays = erp_pixel_rays(
        across, down, height=height, width=width, lat_top=lat_top, lat_bottom=lat_bottom
    )  # (B, h', w', 3)
    view_height, view_width = image.shape[-2:]
    x, y, valid = rays_to_pinhole(rays, height=view_height, width=view_width, fov_x=fov_x, **turn)
    grid = torch.stack((2 * x / view_width - 1, 2 * y / view_height - 1), dim=-1).nan_to_num()
    hidden = ~valid[:, None]
    warped = grid_sample_any(image, grid, mode="bilinear").masked_fill(hidden, 0)
    warped_label = grid_sample_any(label[:, None], grid, mode="nearest").masked_fill(hidden, IGNORE_INDEX)
    return warped, warped_label[:, 0], valid
