"""Rendering: one bundle of rays gives both the image and the label.

Every pixel casts a ray through its centre, which decides its label and contributes to its colour.
With ``supersample``, pixels that stand out from a neighbour cast four more rays, averaged into the
colour, so edges are smooth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panoda.city.film import Exposure, develop, expose
from panoda.city.shading import shade
from panoda.city.world import World
from panoda.config import CameraParams
from panoda.geometry.erp import erp_pixel_rays
from panoda.geometry.pinhole import pinhole_pixel_rays

_TILE = 8
_OFFSETS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_CONTRAST = 0.05  # difference of film response that makes an edge
_EDGE_GROUP = 16  # pixels refined together


@dataclass(frozen=True)
class Pose:
    """A camera in the world.

    Attributes:
        x: East, metres.
        y: North, metres.
        z: Height above the carriageway, metres.
        yaw: Heading in radians, counter-clockwise from east.
        pitch: Upwards, radians.
        roll: Right side down, radians.
    """

    x: float
    y: float
    z: float
    yaw: float
    pitch: float = 0.0
    roll: float = 0.0

    def rotation(self) -> np.ndarray:
        """(3, 3) from camera axes (x right, y down, z forward) to world axes."""
        cy, sy = math.cos(self.yaw), math.sin(self.yaw)
        level = np.array([[sy, 0.0, cy], [-cy, 0.0, sy], [0.0, -1.0, 0.0]])
        cp, sp, cr, sr = math.cos(self.pitch), math.sin(self.pitch), math.cos(self.roll), math.sin(self.roll)
        about_x = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
        about_z = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
        return level @ about_x @ about_z


def pixel_angle(camera: CameraParams) -> float:
    """Angle between neighbouring pixels near the image centre in radians."""
    if camera.projection == "erp":
        return math.radians(camera.lat_top_deg - camera.lat_bottom_deg) / camera.height
    return 2 * math.tan(math.radians(camera.fov_x_deg) / 2) / camera.width


def camera_rays(camera: CameraParams, x: Tensor, y: Tensor) -> Tensor:
    """Unit rays (..., 3) in camera axes of continuous pixel coordinates."""
    if camera.projection == "erp":
        return erp_pixel_rays(
            x,
            y,
            height=camera.height,
            width=camera.width,
            lat_top=math.radians(camera.lat_top_deg),
            lat_bottom=math.radians(camera.lat_bottom_deg),
        )
    return pinhole_pixel_rays(
        x, y, height=camera.height, width=camera.width, fov_x=math.radians(camera.fov_x_deg)
    )


def render(
    world: World,
    camera: CameraParams,
    pose: Pose,
    *,
    exposure: Exposure | None = None,
    seed: int = 0,
    supersample: bool = True,
) -> tuple[Tensor, Tensor]:
    """Render one image with its label.

    Args:
        pose: Where the camera stands and looks.
        exposure: Camera response; None is neutral and without noise.
        seed: Of the sensor noise.
        supersample: Smooth edges with four more rays; otherwise only the centre rays, which is faster.

    Returns:
        Image (H, W, 3) uint8 RGB and label (H, W) uint8 train ids.
    """
    origin = torch.tensor([pose.x, pose.y, pose.z], dtype=torch.float32)
    rotation = torch.from_numpy(pose.rotation().astype(np.float32))
    angle = pixel_angle(camera)
    exposure = exposure or Exposure()
    grid, order = _pixel_tiles(camera)
    rays = camera_rays(camera, grid[..., 0], grid[..., 1]) @ rotation.T
    radiance, label = shade(world, origin, rays, pixel_angle=angle)
    film = expose(radiance, exposure)
    if supersample:
        edges = torch.zeros(len(film), dtype=torch.bool)
        edges[order[_edges(film[order])]] = True
        index = edges.nonzero(as_tuple=True)[0]  # tile order: neighbours stay together
        if len(index):
            rays = _edge_rays(camera, grid.flatten(0, 1)[index]) @ rotation.T
            extra, _ = shade(world, origin, rays, pixel_angle=angle)
            extra = expose(extra, exposure).view(-1, len(_OFFSETS), 3)[: len(index)]
            film[index] = (film[index] + extra.sum(1)) / (1 + len(_OFFSETS))
    return develop(film[order], exposure, seed=seed), label[order].to(torch.uint8)


def _pixel_tiles(camera: CameraParams) -> tuple[Tensor, Tensor]:
    """Pixel centres tile by tile (G, tile^2, 2), and each pixel's place in that order (H, W)."""
    rows, columns = -(-camera.height // _TILE), -(-camera.width // _TILE)
    y, x = torch.meshgrid(torch.arange(rows * _TILE), torch.arange(columns * _TILE), indexing="ij")
    tile = torch.div(y, _TILE, rounding_mode="floor") * columns + torch.div(x, _TILE, rounding_mode="floor")
    order = tile * _TILE**2 + (y % _TILE) * _TILE + x % _TILE
    grid = torch.empty(order.numel(), 2)
    grid[order.flatten()] = torch.stack((x.flatten(), y.flatten()), dim=1) + 0.5
    return grid.view(rows * columns, _TILE**2, 2), order[: camera.height, : camera.width]


def _edges(film: Tensor) -> Tensor:
    """(H, W) bool: pixels that differ from a neighbour to the left, right, above or below."""
    rough = torch.zeros(film.shape[:2], dtype=torch.bool)
    down = (film[1:] - film[:-1]).abs().amax(-1) > _CONTRAST
    across = (film[:, 1:] - film[:, :-1]).abs().amax(-1) > _CONTRAST
    rough[1:] |= down
    rough[:-1] |= down
    rough[:, 1:] |= across
    rough[:, :-1] |= across
    return rough


def _edge_rays(camera: CameraParams, pixels: Tensor) -> Tensor:
    """(G, group * samples, 3) camera rays around pixel centres (n, 2); the last pixel fills up."""
    missing = -len(pixels) % _EDGE_GROUP
    pixels = torch.cat((pixels, pixels[-1:].expand(missing, 2)))
    spots = pixels[:, None] + torch.tensor(_OFFSETS)
    spots = spots.view(len(pixels) // _EDGE_GROUP, -1, 2)
    return camera_rays(camera, spots[..., 0], spots[..., 1])
