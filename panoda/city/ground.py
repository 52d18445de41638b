"""The ground: a carriageway, kerbs with real height, sidewalks and terrain, with markings."""

from __future__ import annotations

import torch
from torch import Tensor

from panoda.city import classes as c
from panoda.city.noise import bar, fade, pulse, value_noise
from panoda.city.streets import KERB_HEIGHT, LANE_WIDTH, PARKING_WIDTH, Ground, StreetField

_CROSSING = 5.6  # markings end this far before the next carriageway, in metres


def hit_ground(field: StreetField, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Where descending rays meet the ground.

    Sidewalks and plots lie ``KERB_HEIGHT`` above the carriageway; a ray that passes over the kerb's
    edge but lands beyond it has met the kerb's face.

    Args:
        origin: (3,) camera position above the sidewalks.
        rays: (n, 3) unit directions with z < 0.

    Returns:
        Distance (n,) and a bool mask (n,) of hits on kerb faces.
    """
    raised = (KERB_HEIGHT - origin[2]) / rays[:, 2]
    flat = -origin[2] / rays[:, 2]
    upper = field.look_up(origin[:2] + rays[:, :2] * raised[:, None]).kerb
    lower = field.look_up(origin[:2] + rays[:, :2] * flat[:, None]).kerb
    on_top = upper >= 0
    face = ~on_top & (lower > 0)
    # The kerb's face stands where the signed distance crosses zero between the two planes.
    share = (upper / (upper - lower).clamp(max=-1e-6)).clamp(0, 1)
    distance = torch.where(on_top, raised, torch.where(face, torch.lerp(raised, flat, share), flat))
    return distance, face


def ground_surface(
    field: StreetField,
    points: Tensor,
    face: Tensor,
    footprint: Tensor,
    *,
    road_albedo: float,
    dryness: float,
    salt: int,
) -> tuple[Tensor, Tensor]:
    """Class and linear albedo of ground points.

    Args:
        points: (n, 3) world points on the ground.
        footprint: (n,) pixel footprint on the ground in metres.
        road_albedo: Reflectance of asphalt.
        dryness: 0 = lush grass, 1 = dry.
        salt: Makes the plots of worlds differ.

    Returns:
        Train ids (n,) int64 and albedo (n, 3).
    """
    x, y = points[:, 0], points[:, 1]
    g = field.look_up(points[:, :2])
    road, terrain = _zones(g, x, y, face, salt)
    label = torch.where(terrain, c.TERRAIN, c.SIDEWALK)
    label = torch.where(road, c.ROAD, label)
    fine = 0.5 + (value_noise(x * 9.0, y * 9.0) - 0.5) * fade(footprint, 0.25)
    coarse = value_noise(x * 0.7, y * 0.7)
    albedo = torch.zeros_like(points)
    for mask, paint in (
        (road, lambda i: _asphalt(g, i, footprint[i], coarse[i], fine[i], road_albedo)),
        (~road & ~terrain, lambda i: _paving(g, i, footprint[i], coarse[i], fine[i], face[i])),
        (terrain, lambda i: _grass(points[i], footprint[i], coarse[i], fine[i], dryness)),
    ):
        index = mask.nonzero(as_tuple=True)[0]
        if len(index):
            albedo[index] = paint(index)
    return label, albedo


def _zones(g: Ground, x: Tensor, y: Tensor, face: Tensor, salt: int) -> tuple[Tensor, Tensor]:
    """Masks of carriageway and terrain; verges and most plots are green, some plots are paved."""
    sidewalk, verge = g.traits[:, 1], g.traits[:, 2]
    road = (g.kerb < 0) & ~face
    grass_strip = (g.kerb > 0.3) & (g.kerb < 0.2 + verge) & (verge > 0) & (g.other > 6)
    plot = value_noise(x * 0.045 + salt * 3.7, y * 0.045 - salt * 1.3)
    green = (g.kerb > verge + sidewalk) & (plot > 0.33)
    return road, ~road & ~face & (grass_strip | green)


def _asphalt(g: Ground, i: Tensor, fp: Tensor, coarse: Tensor, fine: Tensor, base: float) -> Tensor:
    half, _, _, lanes, parking, tram, cycle, _ = g.traits[i].unbind(1)
    lateral, other, kerb = g.lateral[i], g.other[i], g.kerb[i]
    side = lateral.abs()
    tone = base * (0.8 + 0.3 * coarse + 0.25 * (fine - 0.5))
    # Tyre tracks polish the lanes; patches are darker.
    track = ((side - 1.6 * tram) / LANE_WIDTH).frac() - 0.5
    tone = tone * (1 + 0.08 * (track.abs() - 0.25))
    tone = tone * (1 - 0.22 * ((coarse - 0.72) * 6).clamp(0, 1))
    tone = torch.where(kerb > -0.35, tone * 1.35, tone)  # gutter stones
    rgb = tone[:, None] * torch.tensor([1.0, 1.0, 1.03])
    paint = _markings(g, i, fp)
    worn = 0.65 + 0.35 * coarse
    coloured = bar(side, fp, half - 1.6, half - 0.3) * cycle * (other > _CROSSING)
    red = torch.tensor([0.24, 0.075, 0.055])
    rgb = torch.lerp(rgb, red * (0.85 + 0.3 * coarse)[:, None], 0.85 * coloured[:, None])
    rgb = torch.lerp(rgb, torch.full_like(rgb, 0.62), (paint * worn)[:, None])
    rail = bar((side - 1.55).abs(), fp, 0.68, 0.76) * tram
    bed = bar((side - 1.55).abs(), fp, 0.0, 1.15) * tram * 0.25
    rgb = rgb * (1 + bed[:, None])
    return torch.lerp(rgb, torch.full_like(rgb, 0.03), 0.8 * rail[:, None])


def _markings(g: Ground, i: Tensor, fp: Tensor) -> Tensor:
    """(n,) coverage by white paint: centre and lane lines, parking bays, zebra crossings, stop lines."""
    half, _, _, lanes, parking, tram, cycle, _ = g.traits[i].unbind(1)
    lateral, along, other = g.lateral[i], g.along[i], g.other[i]
    side = lateral.abs()
    open_road = (other > _CROSSING).to(fp.dtype)
    edge = half - parking * PARKING_WIDTH
    lane_end = side - 1.6 * tram
    dashed = pulse(along, fp, 6.0, 0.5)
    centre = bar(side, fp, 0.0, 0.07) * dashed * (1 - tram) * (lanes < 2)
    double = bar(side, fp, 0.08, 0.2) * (lanes >= 2)
    lane_line = bar(lane_end, fp, LANE_WIDTH - 0.06, LANE_WIDTH + 0.06) * dashed * (lanes >= 2)
    bay = bar(side, fp, edge - 0.06, edge + 0.06) * parking
    ticks = pulse(along, fp, 6.0, 0.02) * bar(side, fp, edge, half) * parking
    cycle_edge = bar(side, fp, half - 1.75, half - 1.62) * cycle * pulse(along, fp, 2.0, 0.6)
    lines = (centre + double + lane_line + bay + ticks + cycle_edge) * open_road
    zebra = bar(other, fp, 1.3, 4.3) * pulse(lateral + 50.0, fp, 1.0, 0.5)
    stop = bar(other, fp, 5.0, 5.4) * (lateral < -0.1) * (side < edge)
    return ((lines + stop).clamp(max=1.0) + zebra * (other < 4.5)).clamp(max=1.0)


def _paving(g: Ground, i: Tensor, fp: Tensor, coarse: Tensor, fine: Tensor, face: Tensor) -> Tensor:
    along, lateral, kerb = g.along[i], g.lateral[i], g.kerb[i]
    joints = 1 - (1 - pulse(along, fp, 0.6, 0.08)) * (1 - pulse(lateral.abs() + 0.1, fp, 0.6, 0.08))
    tone = 0.27 * (0.85 + 0.3 * coarse + 0.2 * (fine - 0.5)) * (1 - 0.35 * joints)
    rgb = tone[:, None] * torch.tensor([1.04, 1.0, 0.95])
    stone = (kerb < 0.28) & ~face
    seams = pulse(along, fp, 1.0, 0.03)
    rgb = torch.where(stone[:, None], (0.42 * (1 - 0.5 * seams))[:, None].expand_as(rgb), rgb)
    return torch.where(face[:, None], torch.full_like(rgb, 0.3) * (1 - 0.5 * seams)[:, None], rgb)


def _grass(points: Tensor, fp: Tensor, coarse: Tensor, fine: Tensor, dryness: float) -> Tensor:
    lush = torch.tensor([0.07, 0.16, 0.035])
    straw = torch.tensor([0.34, 0.26, 0.14])
    soil = torch.tensor([0.2, 0.14, 0.09])
    tufts = 0.5 + (value_noise(points[:, 0] * 3.1, points[:, 1] * 3.1) - 0.5) * fade(fp, 0.6)
    share = (dryness + 0.5 * (coarse - 0.5)).clamp(0, 1)[:, None]
    rgb = torch.lerp(lush.expand_as(points), straw.expand_as(points), share)
    bare = ((value_noise(points[:, 0] * 0.23 + 40, points[:, 1] * 0.23) - 0.72 + 0.3 * dryness) * 5).clamp(
        0, 1
    )
    rgb = torch.lerp(rgb, soil.expand_as(points), bare[:, None])
    return rgb * (0.55 + 0.5 * tufts + 0.5 * fine)[:, None]
