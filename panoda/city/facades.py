"""House fronts: windows by style, shop fronts, doors, bricks, boards and panel joints."""

from __future__ import annotations

import torch
from torch import Tensor

from panoda.city.hits import Hits, Surface, mix, uniform
from panoda.city.looks import STYLES
from panoda.city.noise import bar, fade, hashed, pulse, value_noise

_GROUND_FLOOR = 3.7
# Per style: window width and height as shares of the bay and storey, frame thickness in metres.
_WINDOWS = torch.tensor(
    [[0.42, 0.56, 0.11], [0.38, 0.58, 0.13], [0.92, 0.86, 0.05], [0.74, 0.46, 0.07], [0.36, 0.44, 0.12]]
)


def paint_facade(h: Hits) -> Surface:
    """House walls. tex: bay width, storey height, style index, 1 with a shop (+ 0.5 when lit)."""
    style = h.tex[:, 2].round().to(torch.int64)
    shop, lit = (h.tex[:, 3] >= 0.9), torch.remainder(h.tex[:, 3], 1.0) > 0.25
    length = 2 * h.half_u
    bay = length / (length / h.tex[:, 0]).round().clamp_min(1)
    x, z = h.u + h.half_u, h.v - _GROUND_FLOOR
    storey_height = h.tex[:, 1]
    column = (x / bay).floor().to(torch.int64)
    storey = (z / storey_height).floor().to(torch.int64)
    wall = _wall(h, style)
    windows = _WINDOWS[style]
    upper = (z > 0) & (h.v < 2 * h.half_v - 0.3) & (h.face != 2)
    opening = _opening(x, z, h, bay, storey_height, windows[:, 0], windows[:, 1], 0.0)
    surround = _opening(x, z, h, bay, storey_height, windows[:, 0], windows[:, 1], windows[:, 2])
    chance = hashed(column, storey, h.salt)
    resolved = fade(h.fu, bay) * fade(h.fv, storey_height)
    chance = 0.5 + (chance - 0.5) * resolved
    trim = torch.where((style == STYLES.index("glass"))[:, None], 0.35 * wall, uniform(h, 0.62, 0.61, 0.58))
    trim = torch.where((style == STYLES.index("timber"))[:, None], h.accent, trim)
    curtain = uniform(h, 0.3, 0.29, 0.27) * (chance > 0.7)[:, None] * 0.7
    pane = uniform(h, 0.028, 0.034, 0.042) + curtain * resolved[:, None]
    tint = (style == STYLES.index("glass"))[:, None]
    pane = torch.where(tint, 0.12 * h.colour + 0.4 * pane, pane)
    rgb = mix(wall, trim, surround * upper)
    rgb = mix(rgb, pane, opening * upper)
    glass = opening * upper
    ground_rgb, ground_glass = _ground_floor(h, x, bay, shop, wall)
    low = (z <= 0) & (h.face != 2)
    rgb = torch.where(low[:, None], ground_rgb, rgb)
    glass = torch.where(low, ground_glass, glass)
    cornice = bar(h.v, h.fv, 2 * h.half_v - 0.3, 2 * h.half_v) * (h.face != 2)
    band = bar(h.v, h.fv, _GROUND_FLOOR - 0.16, _GROUND_FLOOR + 0.08) * (h.face != 2)
    rgb = mix(rgb, 0.62 * wall + 0.1, torch.maximum(cornice, band) * (style != STYLES.index("glass")))
    rgb = mix(rgb, 0.45 * wall, bar(h.v, h.fv, 0.0, 0.45) * (h.face != 2))
    on = lit & (torch.where(low & shop, 1.0, chance) > 0.6)
    glow = uniform(h, 0.85, 0.58, 0.28) * (glass * on * (0.5 + 0.5 * chance))[:, None] * 0.55
    return Surface(rgb, 0.3 * glass, glow)


def _opening(
    x: Tensor,
    z: Tensor,
    h: Hits,
    bay: Tensor,
    storey: Tensor,
    wide: Tensor,
    tall: Tensor,
    rim: Tensor | float,
) -> Tensor:
    """Coverage of the windows, widened by ``rim`` metres on every side."""
    duty_u = (wide + 2 * rim / bay).clamp(max=0.98)
    duty_v = (tall + 2 * rim / storey).clamp(max=0.98)
    across = pulse(x - 0.5 * (1 - duty_u) * bay, h.fu, bay, duty_u)
    up = pulse(z - (0.52 - 0.5 * duty_v) * storey, h.fv, storey, duty_v)
    return across * up


def _wall(h: Hits, style: Tensor) -> Tensor:
    """Plain wall: plaster with stains, bricks, mullions, concrete panels, boards."""
    stain = 0.88 + 0.24 * value_noise(h.u * 0.5 + h.salt, h.v * 0.22)
    grain = 1 + 0.14 * (value_noise(h.u * 5 + h.salt, h.v * 5) - 0.5) * fade(h.fu, 0.4)
    rgb = h.colour * (stain * grain)[:, None]
    row = (h.v / 0.22).floor()
    bricks = 1 - (1 - pulse(h.v, h.fv, 0.22, 0.16)) * (1 - pulse(h.u + 60 + 0.25 * row, h.fu, 0.5, 0.08))
    speckle = (
        hashed(((h.u + 60 + 0.25 * row) / 0.5).floor().to(torch.int64), row.to(torch.int64), h.salt) - 0.5
    )
    brick = rgb * (1 + 0.5 * speckle * fade(h.fu, 0.5) * fade(h.fv, 0.22))[:, None]
    brick = mix(brick, uniform(h, 0.4, 0.37, 0.33), 0.7 * bricks)
    panels = 1 - (1 - pulse(h.u + h.half_u, h.fu, 3.2, 0.02)) * (1 - pulse(h.v, h.fv, 3.0, 0.025))
    boards = pulse(h.v, h.fv, 0.24, 0.18)
    rgb = torch.where((style == STYLES.index("brick"))[:, None], brick, rgb)
    rgb = mix(rgb, 0.45 * rgb, panels * (style == STYLES.index("concrete")))
    return mix(rgb, 0.5 * rgb, boards * (style == STYLES.index("timber")))


def _ground_floor(h: Hits, x: Tensor, bay: Tensor, shop: Tensor, wall: Tensor) -> tuple[Tensor, Tensor]:
    """Shop windows under a sign, or smaller windows with a door now and then."""
    column = (x / bay).floor().to(torch.int64)
    chance = hashed(column, torch.full_like(column, 77), h.salt)
    display = pulse(x - 0.06 * bay, h.fu, bay, torch.full_like(bay, 0.88)) * bar(h.v, h.fv, 0.5, 2.7)
    fascia = bar(h.v, h.fv, 2.85, 3.45)
    letters = (
        fascia * bar(h.v, h.fv, 3.0, 3.3) * (value_noise(h.u * 4 + h.salt, h.v * 0) > 0.5) * fade(h.fu, 0.5)
    )
    shop_rgb = mix(wall, h.accent, fascia)
    shop_rgb = mix(shop_rgb, uniform(h, 0.8, 0.8, 0.76), letters * (h.u.abs() < 0.5 * h.half_u))
    goods = 0.5 + value_noise(h.u * 2.2 + h.salt, h.v * 2.2)
    shop_rgb = mix(shop_rgb, uniform(h, 0.07, 0.065, 0.06) * goods[:, None], display)
    window = pulse(x - 0.3 * bay, h.fu, bay, torch.full_like(bay, 0.4)) * bar(h.v, h.fv, 1.1, 2.6)
    door = pulse(x - 0.3 * bay, h.fu, bay, torch.full_like(bay, 0.36)) * bar(h.v, h.fv, 0.0, 2.4)
    is_door = chance > 0.72
    home_rgb = mix(wall, uniform(h, 0.035, 0.04, 0.045), window * ~is_door)
    home_rgb = mix(home_rgb, 0.4 * h.accent, door * is_door)
    rgb = torch.where(shop[:, None], shop_rgb, home_rgb)
    return rgb, torch.where(shop, display, window * ~is_door)
