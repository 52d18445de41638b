"""Rendering: one bundle of rays gives both the image and the label.

Every pixel casts a ray through its centre, which decides its label and contributes to its colour,
and, with ``supersample``, four more inside the pixel that contribute to its colour only.
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

_TILE = 4
_OFFSETS = ((0.0, 0.0), (-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))


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
        supersample: Average five rays a pixel; otherwise only the centre ray, which is faster.

    Returns:
        Image (H, W, 3) uint8 RGB and label (H, W) uint8 train ids.

    Raises:
        ValueError: the camera is below the sidewalk's level.
    """
    if pose.z < 0.3:
        raise ValueError(f"camera height {pose.z} m is below 0.3 m; cameras stand above the road")
    device = world.scene.centre.device
    rays = _ray_tiles(camera, pose, device=device, supersample=supersample)  # (G, tile^2 * s, 3)
    origin = torch.tensor([pose.x, pose.y, pose.z], dtype=torch.float32, device=device)
    radiance, label = shade(world, origin, rays, pixel_angle=pixel_angle(camera))
    exposure = exposure or Exposure()
    samples = len(_OFFSETS) if supersample else 1
    rows, columns = -(-camera.height // _TILE), -(-camera.width // _TILE)

    def untile(flat: Tensor) -> Tensor:
        grid = flat.view(rows, columns, _TILE, _TILE, -1).permute(0, 2, 1, 3, 4)
        return grid.reshape(rows * _TILE, columns * _TILE, -1)[: camera.height, : camera.width]

    exposed = _expose(radiance, exposure).view(-1, samples, 3).mean(1)
    image = _develop(untile(exposed), exposure, seed=seed)
    return image, untile(label.view(-1, samples)[:, :1])[..., 0].to(torch.uint8)


def _ray_tiles(camera: CameraParams, pose: Pose, *, device: torch.device | str, supersample: bool) -> Tensor:
    """(G, tile^2 * samples, 3) world rays, tile by tile, the centre ray of each pixel first."""
    rows, columns = -(-camera.height // _TILE), -(-camera.width // _TILE)
    spread = torch.tensor(_OFFSETS if supersample else _OFFSETS[:1], device=device)
    y = torch.arange(rows * _TILE, device=device) + 0.5
    x = torch.arange(columns * _TILE, device=device) + 0.5
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack((grid_x, grid_y), dim=-1)[:, :, None] + spread  # (H, W, s, 2)
    grid = grid.view(rows, _TILE, columns, _TILE, -1, 2).permute(0, 2, 1, 3, 4, 5)
    grid = grid.reshape(rows * columns, -1, 2)
    rotation = torch.from_numpy(pose.rotation().astype(np.float32)).to(device)
    return camera_rays(camera, grid[..., 0], grid[..., 1]) @ rotation.T


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
    encoded = image.clamp(0, 1) ** (exposure.gamma / 2.2)
    if exposure.noise > 0:
        # Drawn on the CPU so that every device sees the same grain.
        generator = torch.Generator().manual_seed(seed)
        grain = torch.randn(encoded.shape, generator=generator).to(encoded.device)
        encoded = encoded + exposure.noise * grain * (0.6 + 0.4 * (1 - encoded))
    return (encoded.clamp(0, 1) * 255).round().to(torch.uint8)
