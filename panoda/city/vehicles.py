"""Cars, trucks, buses, trams, motorcycles and bicycles from primitives.

Every builder places its vehicle on ``frame``: origin on the ground under its middle, x forward.
"""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.looks import DrawnLook, palette_colour
from panoda.city.primitives import Frame, Kind, Kit, Material, Part, Vec3

RUBBER: Vec3 = (0.02, 0.02, 0.022)
STEEL: Vec3 = (0.3, 0.31, 0.33)
DARK: Vec3 = (0.035, 0.035, 0.04)


def _wheels(axles: tuple[float, ...], *, track: float, radius: float) -> list[Part]:
    return [wheel(x, side * track / 2, radius=radius, width=0.24) for x in axles for side in (-1, 1)]


_TRAM_STEP, _TRAM_HEIGHT = 9.6, 3.0

# Length, width, body height, cabin height; cabin length share and shift; lean of screen, rear, sides.
_CARS: dict[str, tuple[tuple[float, ...], tuple[float, ...], Vec3]] = {
    "saloon": ((4.6, 1.8, 0.62, 0.52), (0.56, -0.03), (0.5, 0.42, 0.2)),
    "hatchback": ((3.95, 1.74, 0.66, 0.58), (0.68, -0.1), (0.42, 0.18, 0.2)),
    "suv": ((4.5, 1.9, 0.82, 0.66), (0.7, -0.1), (0.34, 0.12, 0.16)),
    "van": ((5.0, 1.98, 0.95, 1.0), (0.84, -0.07), (0.28, 0.02, 0.08)),
}


def car(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A saloon, hatchback, estate or van; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    shape = str(rng.choice(["saloon", "hatchback", "suv", "van"], p=[0.32, 0.36, 0.2, 0.12]))
    (length, width, body, cabin), (share, shift), lean = _CARS[shape]
    low, waist, lit = 0.26, 0.26 + body, (_lit(look), 0, 0, 0)
    lower, upper = (length, width, body), (share * length, width * 0.93, cabin)
    middle, pillar = (shift * length, 0, waist + cabin / 2), (0.13 if shape != "van" else 0.3, 0, 0, 0)
    bevel = (0.06, 0.03, 0.05, 0)
    mirror = (0.17 * length, width / 2 + 0.07, waist + 0.08)
    kit.add(
        frame,
        c.CAR,
        Part(Kind.WEDGE, (0, 0, low + body / 2), lower, paint, Material.PAINT, shape=bevel, tex=lit),
        Part(Kind.WEDGE, middle, upper, paint, Material.CABIN, shape=(*lean, 0), tex=pillar),
        *_wheels((0.31 * length, -0.3 * length), track=width - 0.2, radius=0.33),
        *(  # mirrors break the outline
            Part(Kind.BALL, (mirror[0], side * mirror[1], mirror[2]), (0.14, 0.2, 0.16), paint)
            for side in (-1, 1)
        ),
    )
    return length


def _lit(look: DrawnLook) -> float:
    """Strength of head and tail lamps."""
    return 1.0 if look.lamps_on else 0.25


def truck(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A cab-over lorry with a box or a tipper body; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    cargo = palette_colour(look, str(rng.choice(["white", "grey", "vivid"])), rng)
    tall = rng.random() < 0.7
    long, high = float(rng.uniform(5.2, 6.8)), float(rng.uniform(2.3, 2.7)) if tall else 1.25
    length = long + 2.2
    front = length / 2
    lit, bevel = (_lit(look), 0, 0, 0), (0.03, 0, 0, 0)
    screen, glass = (0.2, 0, 0.05, 0), (0.25, 0, 0, 0)
    kit.add(
        frame.shifted(front - 0.95, 0.0),
        c.TRUCK,
        Part(Kind.WEDGE, (0, 0, 1.2), (1.9, 2.4, 1.3), paint, Material.PAINT, shape=bevel, tex=lit),
        Part(Kind.WEDGE, (-0.03, 0, 2.35), (1.84, 2.36, 1.0), paint, Material.CABIN, shape=screen, tex=glass),
    )
    at, accent = (front - 2.15 - long / 2, 0, 1.1 + high / 2), palette_colour(look, "vivid", rng)
    box = (1.0 if tall else 0.0, 0, 0, 0)
    kit.add(
        frame,
        c.TRUCK,
        Part(Kind.BOX, at, (long, 2.5, high), cargo, Material.CARGO, accent, tex=box),
        Part(Kind.BOX, (-0.3, 0, 0.85), (length - 1.0, 1.0, 0.4), DARK),
        *_wheels((front - 1.3, -front + 1.3, -front + 2.4), track=2.2, radius=0.5),
    )
    return length


def bus(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A city bus: a window band, doors, a destination sign; returns its length in metres."""
    length, high = 11.6, 2.75
    colour = palette_colour(look, str(rng.choice(["vivid", "white", "brick"])), rng)
    accent = palette_colour(look, "white", rng)
    at, size, bevel = (0, 0, 0.32 + high / 2), (length, 2.52, high), (0.015, 0.005, 0.03, 0)
    tex = (1.5, 0.0, _lit(look), 0)
    kit.add(
        frame,
        c.BUS,
        Part(Kind.WEDGE, at, size, colour, Material.COACH, accent, shape=bevel, tex=tex),
        Part(Kind.BOX, (-0.8, 0, 0.32 + high + 0.12), (4.5, 1.7, 0.26), (0.6, 0.6, 0.6)),
        *_wheels((0.29 * length, -0.27 * length), track=2.36, radius=0.48),
    )
    return length


def tram(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A tram of two or three low cars with bellows and a pantograph; returns its length in metres."""
    cars = int(rng.integers(2, 4))
    colour = palette_colour(look, str(rng.choice(["vivid", "brick", "white"])), rng)
    accent = palette_colour(look, str(rng.choice(["white", "grey"])), rng)
    for k in range(cars):
        place = frame.shifted((k - (cars - 1) / 2) * _TRAM_STEP, 0.0)
        ends = (0.16 if k == cars - 1 else 0.0, 0.16 if k == 0 else 0.0)
        _tram_car(kit, place, look, ends=ends, colour=colour, accent=accent)
        if k:
            at, size = (-_TRAM_STEP / 2, 0, 0.4 + _TRAM_HEIGHT / 2), (0.9, 2.1, _TRAM_HEIGHT - 0.4)
            kit.add(place, c.TRAIN, Part(Kind.BOX, at, size, DARK))
    for lean in (-0.7, 0.7):
        at, size = (0.4 + lean * 0.4, 0, _TRAM_HEIGHT + 0.95), (0.07, 0.07, 1.5)
        kit.add(frame, c.TRAIN, Part(Kind.ROD, at, size, STEEL, Material.METAL, spin=(0, lean, 0)))
    return cars * _TRAM_STEP


def _tram_car(
    kit: Kit, frame: Frame, look: DrawnLook, *, ends: tuple[float, float], colour: Vec3, accent: Vec3
) -> None:
    at, size = (0, 0, 0.28 + _TRAM_HEIGHT / 2), (_TRAM_STEP - 0.7, 2.45, _TRAM_HEIGHT)
    shape, tex = (*ends, 0.06, 0), (2.1, 1.0, _lit(look), 0)
    kit.add(
        frame,
        c.TRAIN,
        Part(Kind.WEDGE, at, size, colour, Material.COACH, accent, shape=shape, tex=tex),
        Part(Kind.BOX, (0, 0, 0.25), (_TRAM_STEP - 2.6, 2.1, 0.4), DARK),
        Part(Kind.BOX, (-1.2, 0, 0.45 + _TRAM_HEIGHT), (3.4, 1.5, 0.36), (0.35, 0.36, 0.37)),
    )


def wheel(x: float, y: float, *, radius: float, width: float) -> Part:
    """A tyre with a spoked hub, its axle across the vehicle."""
    size = (2 * radius, 2 * radius, width)
    spin = (math.pi / 2, 0.0, 0.0)
    return Part(Kind.ROD, (x, y, radius), size, RUBBER, Material.WHEEL, accent=STEEL, spin=spin)


def motorcycle(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A motorcycle: two fat wheels, engine, tank, seat, fork, headlight; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    kit.add(
        frame,
        c.MOTORCYCLE,
        wheel(-0.68, 0.0, radius=0.32, width=0.15),
        wheel(0.7, 0.0, radius=0.32, width=0.15),
        Part(Kind.BOX, (0.02, 0, 0.45), (0.62, 0.32, 0.36), STEEL),
        Part(Kind.BALL, (0.2, 0, 0.82), (0.66, 0.36, 0.36), paint, spin=(0, 0.1, 0)),
        Part(Kind.BOX, (-0.36, 0, 0.8), (0.76, 0.28, 0.13), DARK, spin=(0, -0.1, 0)),
        Part(Kind.WEDGE, (-0.7, 0, 0.7), (0.42, 0.24, 0.2), paint, spin=(0, -0.2, 0)),
        Part(Kind.ROD, (0.58, 0, 0.68), (0.12, 0.2, 0.85), STEEL, spin=(0, -0.42, 0)),
        Part(Kind.BOX, (0.36, 0, 1.06), (0.08, 0.78, 0.06), DARK),
        Part(Kind.BALL, (0.55, 0, 0.93), (0.24, 0.24, 0.24), (0.75, 0.75, 0.7)),
    )
    return 2.1


def bicycle(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A bicycle: two spoked rings, a tube frame, saddle and handlebar; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    tubes: tuple[tuple[Vec3, Vec3], ...] = (
        ((0.4, 0, 0.82), (-0.16, 0, 0.8)),
        ((0.42, 0, 0.78), (0.0, 0, 0.34)),
        ((-0.2, 0, 0.95), (0.0, 0, 0.32)),
        ((-0.16, 0, 0.78), (-0.52, 0, 0.35)),
        ((0.0, 0, 0.33), (-0.52, 0, 0.35)),
        ((0.37, 0, 1.0), (0.53, 0, 0.35)),
    )
    kit.add(
        frame,
        c.BICYCLE,
        Part(Kind.RING, (-0.52, 0, 0.35), (0.7, 0.1, 0.7), RUBBER, shape=(0.74, 0, 0, 0)),
        Part(Kind.RING, (0.53, 0, 0.35), (0.7, 0.1, 0.7), RUBBER, shape=(0.74, 0, 0, 0)),
        *(tube(head, foot, width=0.055, colour=paint) for head, foot in tubes),
        Part(Kind.BOX, (-0.22, 0, 0.97), (0.28, 0.16, 0.09), DARK),
        Part(Kind.BOX, (0.36, 0, 1.02), (0.06, 0.56, 0.06), DARK),
    )
    return 1.75


def tube(head: Vec3, foot: Vec3, *, width: float, colour: Vec3, material: Material = Material.PLAIN) -> Part:
    """A round bar between two points of an object's axes."""
    dx, dy, dz = (float(a - b) for a, b in zip(head, foot, strict=True))
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    x, y, z = ((a + b) / 2 for a, b in zip(head, foot, strict=True))
    spin = (0.0, math.acos(max(-1.0, min(1.0, dz / length))), math.atan2(dy, dx))
    return Part(Kind.ROD, (x, y, z), (width, width, length), colour, material, spin=spin)
