"""Surfaces of the primitives: what a hit point's material looks like before lighting.

Patterns are filtered by the pixel's footprint, so that windows, bricks and pickets fade into their
mean instead of flickering. Every painter takes the hits of one material and returns a ``Surface``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch

from panoda.city.facades import paint_facade
from panoda.city.hits import Hits, Surface, mix, plain, uniform
from panoda.city.noise import bar, fade, pulse, value_noise
from panoda.city.primitives import Material

GLASS = (0.025, 0.03, 0.036)


def _plain(h: Hits) -> Surface:
    grain = 1 + 0.12 * (value_noise(h.u * 7 + h.salt, h.v * 7) - 0.5) * fade(h.fu, 0.3)
    return plain(h.colour * grain[:, None], gloss=0.02)


def _cloth(h: Hits) -> Surface:
    folds = value_noise(h.u * 9 + h.salt, h.v * 3.0) - 0.5
    return plain(h.colour * (1 + 0.35 * folds * fade(h.fu, 0.2))[:, None])


def _metal(h: Hits) -> Surface:
    return plain(h.colour, gloss=0.12)


def _roof(h: Hits) -> Surface:
    gable = h.face == 0
    rows = pulse(h.w, h.fv, 0.35, 0.22)
    columns = pulse(h.u, h.fu, 0.3, 0.12)
    shade = 1 - 0.45 * rows - 0.2 * columns
    stain = 0.8 + 0.4 * value_noise(h.u * 0.8 + h.salt, h.w * 0.8)
    tiles = h.colour * (shade * stain)[:, None]
    front = h.accent * (0.9 + 0.1 * value_noise(h.u, h.v))[:, None]
    return plain(torch.where(gable[:, None], front, tiles))


def _paint(h: Hits) -> Surface:
    """Vehicle bodies: lights, grille and plate at the ends, door seams and a sill at the sides."""
    end, side = h.face == 0, h.face == 1
    across, level = h.u.abs() / h.half_u, h.v / (2 * h.half_v)
    seams = bar((h.u - 0.05).abs(), h.fu, 0.0, 0.02) + bar((h.u.abs() - 0.95).abs(), h.fu, 0.0, 0.02)
    rgb = h.colour * (1 - 0.5 * seams * side)[:, None]
    rgb = torch.where((level < 0.22)[:, None] & (h.face != 2)[:, None], uniform(h, 0.03, 0.03, 0.033), rgb)
    front = end & (h.sign > 0)
    rear = end & (h.sign < 0)
    lamp = (across > 0.58) & (level > 0.45) & (level < 0.8)
    grille = front & (across < 0.5) & (level > 0.3) & (level < 0.62)
    rgb = torch.where(grille[:, None], uniform(h, 0.02, 0.02, 0.022), rgb)
    rgb = torch.where((front & lamp)[:, None], uniform(h, 0.75, 0.76, 0.74), rgb)
    rgb = torch.where((rear & lamp)[:, None], uniform(h, 0.42, 0.012, 0.012), rgb)
    plate = end & (across < 0.28) & (level > 0.24) & (level < 0.42)
    rgb = torch.where(plate[:, None], uniform(h, 0.7, 0.7, 0.66), rgb)
    lit = h.tex[:, :1]
    glow = torch.where((front & lamp)[:, None], uniform(h, 1.3, 1.25, 1.1), torch.zeros_like(rgb))
    glow = torch.where((rear & lamp)[:, None], uniform(h, 0.8, 0.02, 0.02), glow)
    return Surface(rgb, torch.where(level < 0.22, 0.02, 0.16), glow * lit)


def _cabin(h: Hits) -> Surface:
    """Glasshouses: dark windows between painted pillars, painted roof."""
    pillar = h.tex[:, 0]
    across, level = h.u.abs() / h.half_u, h.v / (2 * h.half_v)
    side = h.face == 1
    frame = (level < 0.08) | (level > 0.9) | (across > 1 - torch.where(side, pillar, 0.5 * pillar))
    frame |= side & (h.u.abs() < 0.05)
    painted = frame | (h.face == 2)
    rgb = torch.where(painted[:, None], h.colour, uniform(h, *GLASS))
    return Surface(rgb, torch.where(painted, 0.16, 0.5), torch.zeros_like(rgb))


def _wheel(h: Hits) -> Surface:
    radius = h.local[:, :2].norm(dim=1)
    angle = torch.atan2(h.local[:, 1], h.local[:, 0])
    cap = h.face == 2
    hub = cap & (radius < 0.62) & (((angle * 5).cos() > -0.3) | (radius < 0.25))
    rgb = torch.where(hub[:, None], h.accent, h.colour)
    return Surface(rgb, torch.where(hub, 0.15, 0.01), torch.zeros_like(rgb))


def _coach(h: Hits) -> Surface:
    """Buses and trams: window band with posts, doors, a stripe, a lit destination sign.

    tex: height of a window post's spacing in metres, 1 for rail, lamps lit.
    """
    spacing, rail, lit = h.tex[:, 0], h.tex[:, 1], h.tex[:, 2]
    level = h.v / (2 * h.half_v)
    end, side = h.face == 0, h.face == 1
    across = h.u.abs() / h.half_u
    posts = pulse(h.u + 50 * spacing, h.fu, spacing, 0.08)
    band = bar(level, h.fv / (2 * h.half_v), 0.42, 0.82) * side * (1 - posts)
    door_at = torch.remainder(h.u + 1.2, 4.4) - 2.2
    door = side & (door_at.abs() < 0.65) & (level < 0.82) & (level > 0.06)
    door_glass = door & ((door_at.abs() - 0.32).abs() < 0.24)
    screen = end & (level > 0.34) & (level < 0.8) & (across < 0.9)
    sign = end & (h.sign > 0) & (level > 0.83) & (level < 0.95) & (across < 0.7)
    glass = torch.maximum(band, (door_glass | screen).to(band.dtype))
    rgb = h.colour
    stripe = bar(level, h.fv / (2 * h.half_v), 0.22, 0.34) * (h.face != 2)
    rgb = mix(rgb, h.accent, stripe * (0.4 + 0.6 * rail))
    rgb = mix(rgb, 0.5 * rgb, (level < 0.1) & (h.face != 2))
    rgb = mix(rgb, uniform(h, *GLASS), glass)
    lamps = end & (level > 0.14) & (level < 0.24) & (across > 0.55) & (across < 0.85)
    rgb = mix(rgb, uniform(h, 0.7, 0.7, 0.66), lamps)
    rgb = mix(rgb, uniform(h, 0.05, 0.04, 0.01), sign)
    dots = sign & (torch.remainder(h.u * 6, 1.0) < 0.6)
    glow = uniform(h, 0.9, 0.55, 0.1) * dots[:, None] * 0.6
    warm = uniform(h, 0.55, 0.45, 0.3) * (glass * (lit > 0.5) * ~screen)[:, None]
    head = uniform(h, 1.2, 1.1, 0.9) * (lamps & (h.sign > 0))[:, None] * lit[:, None]
    tail = uniform(h, 0.9, 0.03, 0.02) * (lamps & (h.sign < 0))[:, None] * lit[:, None]
    return Surface(rgb, 0.1 + 0.35 * glass, glow + warm * 0.6 + head + tail)


def _cargo(h: Hits) -> Surface:
    """tex[0]: 1 box body with a logo, 0 open body with ribs, 2 striped awning."""
    kind = h.tex[:, 0]
    level = h.v / (2 * h.half_v)
    ribs = pulse(h.u + 50, h.fu, 0.6, 0.12) * (kind < 0.5)
    stripes = pulse(h.u + 50, h.fu, 0.5, 0.5) * (kind > 1.5)
    logo = (kind > 0.5) & (kind < 1.5) & (h.face == 1)
    logo = logo & (level > 0.35) & (level < 0.65) & (h.u.abs() < 0.5 * h.half_u)
    frame = ((level < 0.04) | (level > 0.96)) & (kind < 1.5)
    rgb = h.colour * (1 - 0.5 * ribs)[:, None]
    rgb = mix(rgb, h.accent, torch.maximum(stripes, logo.to(stripes.dtype)))
    rgb = mix(rgb, 0.4 * rgb, frame)
    doors = (h.face == 0) & (h.sign < 0) & (h.u.abs() < 0.03)
    return plain(mix(rgb, 0.3 * rgb, doors), gloss=0.04)


def _foliage(h: Hits) -> Surface:
    p = h.point
    s = h.salt * 0.37
    small = value_noise(p[:, 0] * 4.3 + p[:, 2] * 2.1 + s, p[:, 1] * 4.3 - p[:, 2] * 3.3) - 0.5
    large = value_noise(p[:, 0] * 1.3 - p[:, 2] * 0.9 + s, p[:, 1] * 1.3 + p[:, 2] * 1.1) - 0.5
    leaves = 1 + 1.3 * small * fade(h.fv, 0.5) + 0.9 * large
    under = 0.75 + 0.35 * h.local[:, 2]  # the underside of a crown is in its own shade
    rgb = h.colour * (leaves.clamp_min(0.15) * under)[:, None]
    yellow = torch.tensor([1.25, 1.05, 0.6])
    return plain(torch.lerp(rgb, rgb * yellow, (small + large).clamp(0, 1)[:, None]), soft=0.55)


def _bark(h: Hits) -> Surface:
    ridges = value_noise(h.u * 14 + h.salt, h.v * 2.5) - 0.5
    return plain(h.colour * (1 + 0.9 * ridges * fade(h.fu, 0.15))[:, None])


def _masonry(h: Hits) -> Surface:
    """tex[0]: 1 brick bond, 0 render with stains."""
    row = (h.v / 0.16).floor()
    joints = 1 - (1 - pulse(h.v, h.fv, 0.16, 0.14)) * (1 - pulse(h.u + 0.2 * row, h.fu, 0.4, 0.06))
    brick = h.tex[:, 0]
    tone = 0.85 + 0.3 * value_noise(h.u * 2.5 + h.salt, h.v * 6)
    stain = 0.75 + 0.4 * value_noise(h.u * 0.7 + h.salt, h.v * 0.25)
    rgb = mix(h.colour * tone[:, None], h.accent, joints * brick)
    return plain(rgb * (stain * (1 - 0.25 * (h.v < 0.25)))[:, None])


def _paling(h: Hits) -> Surface:
    grain = 0.85 + 0.3 * value_noise(h.u * 6.25 + h.salt, h.v * 1.5)
    return plain(h.colour * grain[:, None])


def _lamp_head(h: Hits) -> Surface:
    """Traffic lights: three lamps on the face towards drivers; tex[0] says which one burns."""
    level = h.v / (2 * h.half_v)
    towards = (h.face == 0) & (h.sign < 0)
    slot = (level * 3).floor().clamp(0, 2)
    offset = torch.hypot(h.u / 0.155, (level * 3 - slot - 0.5) * 2.4)
    lamp = towards & (offset < 1.15)
    colours = torch.tensor([[0.05, 0.9, 0.3], [1.0, 0.6, 0.05], [1.0, 0.06, 0.04]])
    own = colours[slot.to(torch.int64)]
    burning = lamp & (slot == h.tex[:, 0])
    rgb = mix(h.colour.clone(), 0.12 * own + 0.02, lamp)
    edge = towards & ((h.u.abs() > 0.185) | (level > 0.97) | (level < 0.03))
    rgb = mix(rgb, uniform(h, 0.3, 0.3, 0.28), edge)
    return Surface(rgb, torch.full_like(h.u, 0.03), own * burning[:, None] * 1.6)


def _sign(h: Hits) -> Surface:
    """Traffic signs: tex[0] is the motif of ``furniture``; 5 is a direction board."""
    motif = h.tex[:, 0]
    y, z = h.sign_plane[:, 0], h.sign_plane[:, 1]
    r = torch.hypot(y, z)
    edge = torch.maximum(y.abs(), z.abs())
    rim = (motif == 0) & (r > 0.72)
    slope = 1 - (z + 1) / 2
    rim |= (motif == 1) & ((y.abs() > slope - 0.3) | (z < -0.72))
    rim |= ((motif == 2) | (motif == 4) | (motif == 5)) & (edge > 0.9)
    figure = (motif == 2) & (y.abs() < 0.5) & (z.abs() < 0.62) & ((y < -0.2) | (z > 0.0))
    figure |= (motif == 3) & ((y.abs() < 0.16) & (z.abs() < 0.6) | ((z - 0.35 + y.abs()).abs() < 0.2))
    figure |= (motif == 5) & (torch.remainder(z * 1.6, 1.0) < 0.45) & (y > -0.7) & (y < 0.55)
    ink = (motif == 0) & (z.abs() < 0.18) & (y.abs() < 0.5)
    ink |= (motif == 1) & (y.abs() < 0.1) & (z > -0.5) & (z < 0.2)
    rgb = mix(h.colour, h.accent, rim | figure)
    rgb = mix(rgb, uniform(h, 0.02, 0.02, 0.02), ink)
    back = h.sign > 0
    return plain(mix(rgb, uniform(h, 0.25, 0.25, 0.26), back), gloss=0.03)


def _glow(h: Hits) -> Surface:
    return Surface(h.colour, torch.full_like(h.u, 0.1), h.colour * h.tex[:, :1])


_PAINTERS: dict[Material, Callable[[Hits], Surface]] = {
    Material.PLAIN: _plain,
    Material.FACADE: paint_facade,
    Material.ROOF: _roof,
    Material.PAINT: _paint,
    Material.CABIN: _cabin,
    Material.WHEEL: _wheel,
    Material.COACH: _coach,
    Material.CARGO: _cargo,
    Material.FOLIAGE: _foliage,
    Material.BARK: _bark,
    Material.MASONRY: _masonry,
    Material.PALING: _paling,
    Material.LAMP_HEAD: _lamp_head,
    Material.SIGN: _sign,
    Material.METAL: _metal,
    Material.CLOTH: _cloth,
    Material.GLOW: _glow,
}


def surfaces(hits: Hits) -> Surface:
    """Paint all hits, material by material."""
    n = len(hits)
    out = Surface(
        torch.zeros(n, 3),
        torch.zeros(n),
        torch.zeros(n, 3),
        torch.zeros(n),
    )
    order = torch.argsort(hits.material, stable=True)
    counts = torch.bincount(hits.material, minlength=len(Material)).tolist()
    for material, index in zip(Material, order.split(counts), strict=True):
        if len(index):
            painted = _PAINTERS[material](hits.take(index))
            for field in fields(Surface):
                getattr(out, field.name)[index] = getattr(painted, field.name)
    return out
