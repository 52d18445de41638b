"""Radiance and class along rays: tracing, surfaces, sun, sky light, shadows, haze."""

from __future__ import annotations

import torch
from torch import Tensor

from panoda.city import classes as c
from panoda.city.ground import ground_surface, hit_ground
from panoda.city.hits import describe_hits
from panoda.city.shadows import sample_map
from panoda.city.sky import sky_radiance
from panoda.city.textures import surfaces
from panoda.city.trace import angular_bounds, trace, visible_pairs
from panoda.city.world import SHADOW_EXTENT, World


def shade(world: World, origin: Tensor, rays: Tensor, *, pixel_angle: float) -> tuple[Tensor, Tensor]:
    """Linear radiance and class along rays.

    Args:
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
    normal = torch.tensor([0.0, 0.0, 1.0]).expand_as(points)
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
    blocker = sample_map(world.shadow, ground, lifted[:, 2] + 0.25, extent=SHADOW_EXTENT)
    shade = torch.lerp(1 - blocker, torch.full_like(soft, 1.0), 0.5 * soft)
    covered = sample_map(
        world.canopy, (points + normal * 0.6)[:, :2], points[:, 2] + 0.6, extent=SHADOW_EXTENT
    )
    opening = (0.62 + 0.38 * normal[:, 2]) * (1 - 0.5 * covered * (1 - 0.7 * soft))
    bounce = 0.16 * (1 - normal[:, 2]) * light.sun.mean() * toward[2]
    ambient = light.ambient * opening[:, None] + bounce[:, None] * 0.35 * light.sun
    return light.sun * (lit * shade)[:, None], ambient
