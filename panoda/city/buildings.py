"""Buildings from primitives: five facade styles, four roofs, balconies, awnings, chimneys.

Origin on the ground in the middle of the front; x along the front, y into the plot.
"""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.looks import STYLES, DrawnLook, palette_colour
from panoda.city.primitives import Frame, Kind, Kit, Material, Part, Vec3

_STOREY = {"plaster": 3.1, "brick": 3.2, "glass": 3.6, "concrete": 3.0, "timber": 2.7}
_BAY = {"plaster": 2.6, "brick": 2.8, "glass": 1.8, "concrete": 3.2, "timber": 2.4}
GROUND_FLOOR = 3.7


def building(
    kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, width: float, depth: float
) -> float:
    """One building; returns its height to the eaves in metres."""
    params = look.params
    style = params.building_styles[int(rng.integers(len(params.building_styles)))]
    storeys = int(rng.integers(params.storeys[0], params.storeys[1] + 1))
    storeys = min(storeys, 3) if style == "timber" else storeys
    height = GROUND_FLOOR + (storeys - 1) * _STOREY[style] + 0.5
    colour = _wall_colour(look, rng, style)
    accent = palette_colour(look, str(rng.choice(["brick", "vivid", "grey"])), rng)
    shop = rng.random() < (0.15 if style == "timber" else 0.45)
    lit = 0.5 if look.lamps_on else 0.0
    tex = (_BAY[style], _STOREY[style], float(STYLES.index(style)), float(shop) + lit)
    at, size = (0, depth / 2, height / 2), (width, depth, height)
    kit.add(frame, c.BUILDING, Part(Kind.BOX, at, size, colour, Material.FACADE, accent, tex=tex))
    _roof(kit, frame, look, rng, style=style, width=width, depth=depth, height=height, colour=colour)
    if style in ("concrete", "plaster") and rng.random() < 0.5:
        _balconies(kit, frame, rng, style=style, width=width, storeys=storeys, colour=colour)
    if shop and rng.random() < 0.6:
        _awning(kit, frame, look, rng, width=width * 0.8)
    return height


def _wall_colour(look: DrawnLook, rng: np.random.Generator, style: str) -> Vec3:
    palettes = look.params.palettes
    palette = palettes[int(rng.integers(len(palettes)))]
    colour = palette_colour(look, "brick" if style == "brick" else palette, rng)
    if style == "timber" and rng.random() < 0.6:  # stained boards
        tone = float(rng.uniform(0.6, 1.2))
        return 0.2 * tone, 0.12 * tone, 0.06 * tone
    return colour


def _awning(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, width: float) -> None:
    colour, accent = palette_colour(look, "vivid", rng), (0.8, 0.8, 0.78)
    at, size, shape, tex = (0, -0.55, 2.95), (width, 1.1, 0.35), (0, 0, 0.5, 0), (2.0, 0, 0, 0)
    kit.add(frame, c.BUILDING, Part(Kind.WEDGE, at, size, colour, Material.CARGO, accent, shape, tex))


def _block(kit: Kit, frame: Frame, at: Vec3, size: Vec3, colour: Vec3) -> None:
    kit.add(frame, c.BUILDING, Part(Kind.BOX, at, size, colour))


def _roof(
    kit: Kit,
    frame: Frame,
    look: DrawnLook,
    rng: np.random.Generator,
    *,
    style: str,
    width: float,
    depth: float,
    height: float,
    colour: Vec3,
) -> None:
    flat = {"plaster": 0.3, "brick": 0.5, "glass": 1.0, "concrete": 0.9, "timber": 0.0}[style]
    if look.params.palettes[0] == "earth" and look.params.storeys[1] <= 3:
        flat = 0.95  # mud-brick towns build terraces
    if rng.random() >= flat:
        top = frame.shifted(0.0, depth / 2, height)
        _pitched_roof(kit, top, rng, timber=style == "timber", width=width, depth=depth, colour=colour)
        return
    trim = (colour[0] * 0.8, colour[1] * 0.8, colour[2] * 0.8)
    _block(kit, frame, (0, depth / 2, height + 0.15), (width + 0.3, depth + 0.3, 0.4), trim)
    if rng.random() < 0.6:  # lift housing
        x = float(rng.uniform(-0.25, 0.25)) * width
        _block(kit, frame, (x, depth * 0.6, height + 1.3), (3.0, 3.0, 2.2), (0.3, 0.3, 0.3))


def _pitched_roof(
    kit: Kit,
    frame: Frame,
    rng: np.random.Generator,
    *,
    timber: bool,
    width: float,
    depth: float,
    colour: Vec3,
) -> None:
    """A gable along or across the street, or a hip, with chimneys and dormers; origin amid the eaves."""
    tiles = (0.28, 0.09, 0.05) if rng.random() < 0.6 else (0.07, 0.07, 0.08)
    rise = float(rng.uniform(0.28, 0.5)) * depth * (1.2 if timber else 0.8)
    overhang = 1.4 if timber else 0.6
    across = rng.random() < (0.6 if timber else 0.15)  # gable towards the street
    hip = 0.0 if across or rng.random() < 0.6 else rise / width * 1.2
    long, short = (depth, width) if across else (width, depth)
    at, size, shape = (0, 0, rise / 2), (long + overhang, short + overhang, rise), (hip, hip, 1.0, 0)
    spin = (0, 0, math.pi / 2 if across else 0)
    kit.add(
        frame,
        c.BUILDING,
        Part(Kind.WEDGE, at, size, tiles, Material.ROOF, accent=colour, shape=shape, spin=spin),
    )
    if across:
        return
    for side in (-0.3, 0.28):
        _block(kit, frame, (side * width, -0.1 * depth, rise * 0.85), (0.7, 0.5, 1.5), (0.25, 0.12, 0.09))
    if width > 9 and rise > 2.2:
        for side in (-0.25, 0.25):
            _block(kit, frame, (side * width, -0.34 * depth, rise * 0.36), (1.3, 1.6, 1.5), colour)


def _balconies(
    kit: Kit, frame: Frame, rng: np.random.Generator, *, style: str, width: float, storeys: int, colour: Vec3
) -> None:
    bay = _BAY[style]
    columns = max(1, round(width / bay))
    step = width / columns
    every = int(rng.integers(1, 3)) + (style == "plaster")
    for column in range(columns):
        if column % every:
            continue
        x = (column + 0.5) * step - width / 2
        for storey in range(1, min(storeys, 6)):
            z = GROUND_FLOOR + (storey - 1) * _STOREY[style]
            size = (step * 0.8, 1.0, 0.9)
            if style == "plaster":  # iron railing on a slab
                at, iron, bars = (x, -0.9, z + 0.55), (0.04, 0.04, 0.04), (0.14, 0.3, 0, 0)
                kit.add(frame, c.BUILDING, Part(Kind.PICKET, at, (size[0], 0.05, 1.0), iron, shape=bars))
                _block(kit, frame, (x, -0.45, z), (size[0], 0.9, 0.14), colour)
            else:
                _block(kit, frame, (x, -0.5, z + 0.45), size, colour)


def skyline(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, width: float) -> None:
    """A far, coarse building that closes a view: two or three joined blocks."""
    x = -width / 2
    while x < width / 2:
        part = float(rng.uniform(10, 22))
        building(
            kit, frame.shifted(x + part / 2, float(rng.uniform(0, 4))), look, rng, width=part, depth=12.0
        )
        x += part
