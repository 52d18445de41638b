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

from panoda.config import CameraParams, LookParams
from panoda.data.city import classes as c
from panoda.data.city.ground import ground_surface, hit_ground
from panoda.data.city.hits import describe_hits
from panoda.data.city.sky import sky_radiance
from panoda.data.city.textures import surfaces
from panoda.data.city.trace import angular_bounds, trace, visible_pairs
from panoda.data.city.world import SHADOW_EXTENT, World
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


@dataclass(frozen=True)
class Exposure:
    """What the camera does to radiance; drawn per image."""

    ev: float = 0.0
    gamma: float = 1.0
    white_balance: float = 0.0
    noise: float = 0.0


def draw_exposure(look: LookParams, rng: np.random.Generator) -> Exposure:
    """Exposure, tone curve, colour cast and noise of one image."""
    return Exposure(
        ev=float(rng.uniform(*look.exposure_ev)),
        gamma=float(rng.uniform(*look.gamma)),
        white_balance=float(rng.uniform(*look.white_balance)),
        noise=float(rng.uniform(*look.noise)),
    )


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
    """Render one image with its label, on the world's device.

    Args:
        world: The world.
        camera: Projection and size.
        pose: Where the camera stands and looks.
        exposure: Camera response; None is neutral and without noise.
        seed: Of the sensor noise.
        supersample: Smooth edges with four more rays; otherwise only the centre rays, which is faster.

    Returns:
        Image (H, W, 3) uint8 RGB and label (H, W) uint8 train ids.

    Raises:
        ValueError: the camera is below the sidewalk's level.
    """
    if pose.z < 0.3:
        raise ValueError(f"camera height {pose.z} m is below 0.3 m; cameras stand above the road")
    device = world.scene.centre.device
    origin = torch.tensor([pose.x, pose.y, pose.z], dtype=torch.float32, device=device)
    rotation = torch.from_numpy(pose.rotation().astype(np.float32)).to(device)
    angle = pixel_angle(camera)
    exposure = exposure or Exposure()
    grid, order = _pixel_tiles(camera, device=device)
    rays = camera_rays(camera, grid[..., 0], grid[..., 1]) @ rotation.T
    radiance, label = shade(world, origin, rays, pixel_angle=angle)
    film = _expose(radiance, exposure)
    if supersample:
        edges = torch.zeros(len(film), dtype=torch.bool, device=device)
        edges[order[_edges(film[order])]] = True
        # Tile order keeps the pixels of a group close together.
        index = edges.nonzero(as_tuple=True)[0]
        if len(index):
            rays = _edge_rays(camera, grid.flatten(0, 1)[index]) @ rotation.T
            extra, _ = shade(world, origin, rays, pixel_angle=angle)
            extra = _expose(extra, exposure).view(-1, len(_OFFSETS), 3)[: len(index)]
            film[index] = (film[index] + extra.sum(1)) / (1 + len(_OFFSETS))
    return _develop(film[order], exposure, seed=seed), label[order].to(torch.uint8)


def _pixel_tiles(camera: CameraParams, *, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Pixel centres tile by tile (G, tile^2, 2), and each pixel's place in that order (H, W)."""
    rows, columns = -(-camera.height // _TILE), -(-camera.width // _TILE)
    y, x = torch.meshgrid(
        torch.arange(rows * _TILE, device=device), torch.arange(columns * _TILE, device=device), indexing="ij"
    )
    tile = torch.div(y, _TILE, rounding_mode="floor") * columns + torch.div(x, _TILE, rounding_mode="floor")
    order = tile * _TILE**2 + (y % _TILE) * _TILE + x % _TILE
    grid = torch.empty(order.numel(), 2, device=device)
    grid[order.flatten()] = torch.stack((x.flatten(), y.flatten()), dim=1) + 0.5
    return grid.view(rows * columns, _TILE**2, 2), order[: camera.height, : camera.width]


def _edges(film: Tensor) -> Tensor:
    """(H, W) bool: pixels that differ from a neighbour to the left, right, above or below."""
    rough = torch.zeros(film.shape[:2], dtype=torch.bool, device=film.device)
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
    spots = pixels[:, None] + torch.tensor(_OFFSETS, device=pixels.device)
    spots = spots.view(len(pixels) // _EDGE_GROUP, -1, 2)
    return camera_rays(camera, spots[..., 0], spots[..., 1])


def shade(world: World, origin: Tensor, rays: Tensor, *, pixel_angle: float) -> tuple[Tensor, Tensor]:
    """Linear radiance and class along rays.

    Args:
        world: The world.
        origin: (3,) camera position.
        rays: (G, R, 3) unit world directions in compact groups.
        pixel_angle: Angle between neighbouring pixels in radians.

    Returns:
        Radiance (G * R, 3) and train ids (G * R,) int64.
    """
    pairs = visible_pairs(angular_bounds(world.scene, origin), rays)
    distance, prim = trace(world.scene, origin, rays, pairs, pixel_angle=pixel_angle)
    rays, distance, prim = rays.flatten(0, 1), distance.flatten(), prim.flatten()
    label = torch.full_like(prim, c.SKY)
    radiance = torch.zeros_like(rays)
    falling = (rays[:, 2] < -1e-4) & ((0.2 - origin[2]) / rays[:, 2].clamp(max=-1e-4) < distance)
    index = falling.nonzero(as_tuple=True)[0]
    reach, face = hit_ground(world.field, origin, rays[index])
    nearer = reach < distance[index]
    index, reach, face = index[nearer], reach[nearer], face[nearer]
    distance[index], prim[index] = reach, -1
    label[index], radiance[index] = _shade_ground(world, origin, rays[index], reach, face, pixel_angle)
    solid = (prim >= 0).nonzero(as_tuple=True)[0]
    label[solid] = world.scene.label[prim[solid]]
    radiance[solid] = _shade_solids(world, origin, rays[solid], distance[solid], prim[solid], pixel_angle)
    open_sky = distance.isinf()
    hazed = 1 - torch.exp(-world.light.haze * distance.clamp(max=1e4))
    radiance = torch.lerp(radiance, world.light.horizon.expand_as(radiance), hazed[:, None])
    above = open_sky.nonzero(as_tuple=True)[0]
    radiance[above] = sky_radiance(world.light, rays[above])
    return radiance, label


def _shade_ground(
    world: World, origin: Tensor, rays: Tensor, distance: Tensor, face: Tensor, angle: float
) -> tuple[Tensor, Tensor]:
    points = origin + rays * distance[:, None]
    footprint = distance * angle / rays[:, 2].abs().clamp_min(0.02).sqrt()
    label, albedo = ground_surface(
        world.field,
        points,
        face,
        footprint,
        road_albedo=world.look.road_albedo,
        dryness=world.look.dryness,
        salt=world.seed % 97,
    )
    normal = torch.tensor([0.0, 0.0, 1.0], device=rays.device).expand_as(points)
    direct, ambient = _light(world, points, normal, torch.zeros_like(distance))
    # A wet or worn road mirrors the horizon at grazing angles.
    sheen = 0.25 * (1 - rays[:, 2].abs()).clamp_min(0) ** 6 * (label == c.ROAD)
    return label, albedo * (direct + ambient) + sheen[:, None] * 0.25 * world.light.horizon


def _shade_solids(
    world: World, origin: Tensor, rays: Tensor, distance: Tensor, prim: Tensor, angle: float
) -> Tensor:
    hits = describe_hits(world.scene, origin, rays, distance, prim, pixel_angle=angle)
    surface = surfaces(hits)
    soft = surface.soft if surface.soft is not None else torch.zeros_like(distance)
    direct, ambient = _light(world, hits.point, hits.normal, soft)
    cosine = -(hits.normal * rays).sum(1)
    mirror = rays + 2 * cosine[:, None] * hits.normal
    fresnel = surface.gloss + (1 - surface.gloss) * (surface.gloss > 0.05) * (1 - cosine).clamp(0, 1) ** 5
    reflected = sky_radiance(world.light, mirror, detail=False)
    low = (mirror[:, 2:] * 3 + 0.4).clamp(0.25, 1.0)  # near the horizon the street is mirrored, not the sky
    spark = (mirror @ world.light.sun_direction).clamp_min(0) ** 60 * (surface.gloss > 0.1)
    shine = reflected * low + spark[:, None] * direct
    return torch.lerp(surface.albedo * (direct + ambient), shine, fresnel[:, None]) + surface.glow


def _light(world: World, points: Tensor, normal: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
    """Direct and ambient irradiance (n, 3) at surface points."""
    light = world.light
    toward = light.sun_direction
    lit = torch.lerp((normal @ toward).clamp_min(0), torch.full_like(soft, 0.55), soft)
    lifted = points + normal * 0.3
    ground = lifted[:, :2] - toward[:2] / toward[2] * lifted[:, 2:]
    blocker = _sample_map(world.shadow, ground, lifted[:, 2] + 0.25)
    shade = torch.lerp(1 - blocker, torch.full_like(soft, 1.0), 0.5 * soft)
    covered = _sample_map(world.canopy, (points + normal * 0.6)[:, :2], points[:, 2] + 0.6)
    opening = (0.62 + 0.38 * normal[:, 2]) * (1 - 0.5 * covered * (1 - 0.7 * soft))
    bounce = 0.16 * (1 - normal[:, 2]) * light.sun.mean() * toward[2]
    ambient = light.ambient * opening[:, None] + bounce[:, None] * 0.35 * light.sun
    return light.sun * (lit * shade)[:, None], ambient


def _sample_map(height: Tensor, xy: Tensor, level: Tensor) -> Tensor:
    """Share of the four nearest cells whose height exceeds ``level`` (n,), weighted bilinearly."""
    cells = height.shape[0]
    p = ((xy + SHADOW_EXTENT) * (cells / (2 * SHADOW_EXTENT)) - 0.5).clamp(0, cells - 1.001)
    low = p.floor()
    f = p - low
    column, row = low[:, 0].to(torch.int64), low[:, 1].to(torch.int64)
    flat, base = height.flatten(), row * cells + column
    over = [(flat[base + shift] > level).to(p.dtype) for shift in (0, 1, cells, cells + 1)]
    upper = torch.lerp(over[0], over[1], f[:, 0])
    lower = torch.lerp(over[2], over[3], f[:, 0])
    return torch.lerp(upper, lower, f[:, 1])


def _expose(radiance: Tensor, exposure: Exposure) -> Tensor:
    """Linear radiance -> film response in [0, 1): white balance, exposure, soft shoulder."""
    shift = 0.22 * exposure.white_balance
    cast = torch.tensor([1 + shift, 1.0, 1 - 1.3 * shift], device=radiance.device)
    return 1 - torch.exp(radiance * (cast * (-1.15 * 2.0**exposure.ev)))


def _develop(image: Tensor, exposure: Exposure, *, seed: int) -> Tensor:
    """Film response (H, W, 3) -> uint8: display encoding, tone curve, sensor noise."""
    encoded = image.clamp(0, 1) ** (1 / 2.2)
    curved = encoded * encoded * (3 - 2 * encoded)
    encoded = torch.lerp(encoded, curved, 0.45) ** exposure.gamma
    if exposure.noise > 0:
        # Drawn on the CPU so that every device sees the same grain.
        generator = torch.Generator().manual_seed(seed)
        grain = torch.randn(encoded.shape, generator=generator).to(encoded.device)
        encoded = encoded + exposure.noise * grain * (0.6 + 0.4 * (1 - encoded))
    return (encoded.clamp(0, 1) * 255).round().to(torch.uint8)
