"""Cars, trucks, buses, trams, motorcycles and bicycles from primitives.

Every builder places its vehicle on ``frame``: origin on the ground under its middle, x forward.
"""

from __future__ import annotations

import math

import numpy as np

from panoda.data.city import classes as c
from panoda.data.city.looks import DrawnLook, palette_colour
from panoda.data.city.primitives import Frame, Kind, Kit, Material, Vec3

_RUBBER: Vec3 = (0.02, 0.02, 0.022)
_STEEL: Vec3 = (0.3, 0.31, 0.33)
_DARK: Vec3 = (0.035, 0.035, 0.04)
_ACROSS: Vec3 = (math.pi / 2, 0.0, 0.0)


def _wheel(kit: Kit, frame: Frame, x: float, y: float, *, radius: float, width: float, label: int) -> None:
    kit.add(
        Kind.ROD,
        frame,
        at=(x, y, radius),
        size=(2 * radius, 2 * radius, width),
        label=label,
        material=Material.WHEEL,
        colour=_RUBBER,
        accent=_STEEL,
        spin=_ACROSS,
    )


def _wheels(
    kit: Kit, frame: Frame, axles: tuple[float, ...], *, track: float, radius: float, label: int
) -> None:
    for x in axles:
        for side in (-1, 1):
            _wheel(kit, frame, x, side * track / 2, radius=radius, width=0.24, label=label)


def car(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A saloon, hatchback, estate or van; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    shape = rng.choice(["saloon", "hatchback", "suv", "van"], p=[0.32, 0.36, 0.2, 0.12])
    lit = 1.0 if look.lamps_on else 0.25
    length, width, body, cabin = {
        "saloon": (4.6, 1.8, 0.62, 0.52),
        "hatchback": (3.95, 1.74, 0.66, 0.58),
        "suv": (4.5, 1.9, 0.82, 0.66),
        "van": (5.0, 1.98, 0.95, 1.0),
    }[str(shape)]
    low, wheel = 0.26, 0.33
    cabin_length, shift, lean = {
        "saloon": (0.56, -0.03, (0.5, 0.42, 0.2)),
        "hatchback": (0.68, -0.1, (0.42, 0.18, 0.2)),
        "suv": (0.7, -0.1, (0.34, 0.12, 0.16)),
        "van": (0.84, -0.07, (0.28, 0.02, 0.08)),
    }[str(shape)]
    kit.add(
        Kind.WEDGE,
        frame,
        at=(0, 0, low + body / 2),
        size=(length, width, body),
        label=c.CAR,
        material=Material.PAINT,
        colour=paint,
        shape=(0.06, 0.03, 0.05, 0),
        tex=(lit, 0, 0, 0),
    )
    kit.add(
        Kind.WEDGE,
        frame,
        at=(shift * length, 0, low + body + cabin / 2),
        size=(cabin_length * length, width * 0.93, cabin),
        label=c.CAR,
        material=Material.CABIN,
        colour=paint,
        shape=(*lean, 0),
        tex=(0.13 if shape != "van" else 0.3, 0, 0, 0),
    )
    _wheels(kit, frame, (0.31 * length, -0.3 * length), track=width - 0.2, radius=wheel, label=c.CAR)
    for side in (-1, 1):  # mirrors break the outline
        kit.add(
            Kind.BALL,
            frame,
            at=(0.17 * length, side * (width / 2 + 0.07), low + body + 0.08),
            size=(0.14, 0.2, 0.16),
            label=c.CAR,
            material=Material.PLAIN,
            colour=paint,
        )
    return length


def truck(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A cab-over lorry with a box or a tipper body; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    cargo = palette_colour(look, str(rng.choice(["white", "grey", "vivid"])), rng)
    tall = rng.random() < 0.7
    long, high = float(rng.uniform(5.2, 6.8)), float(rng.uniform(2.3, 2.7)) if tall else 1.25
    length = long + 2.2
    front = length / 2
    lit = 1.0 if look.lamps_on else 0.25
    kit.add(
        Kind.WEDGE,
        frame,
        at=(front - 0.95, 0, 0.55 + 0.65),
        size=(1.9, 2.4, 1.3),
        label=c.TRUCK,
        material=Material.PAINT,
        colour=paint,
        shape=(0.03, 0, 0, 0),
        tex=(lit, 0, 0, 0),
    )
    kit.add(
        Kind.WEDGE,
        frame,
        at=(front - 0.98, 0, 1.85 + 0.5),
        size=(1.84, 2.36, 1.0),
        label=c.TRUCK,
        material=Material.CABIN,
        colour=paint,
        shape=(0.2, 0, 0.05, 0),
        tex=(0.25, 0, 0, 0),
    )
    kit.add(
        Kind.BOX,
        frame,
        at=(front - 2.15 - long / 2, 0, 1.1 + high / 2),
        size=(long, 2.5, high),
        label=c.TRUCK,
        material=Material.CARGO,
        colour=cargo,
        accent=palette_colour(look, "vivid", rng),
        tex=(1.0 if tall else 0.0, 0, 0, 0),
    )
    kit.add(
        Kind.BOX,
        frame,
        at=(-0.3, 0, 0.85),
        size=(length - 1.0, 1.0, 0.4),
        label=c.TRUCK,
        material=Material.PLAIN,
        colour=_DARK,
    )
    _wheels(kit, frame, (front - 1.3, -front + 1.3, -front + 2.4), track=2.2, radius=0.5, label=c.TRUCK)
    return length


def bus(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A city bus: a window band, doors, a destination sign; returns its length in metres."""
    length, high = 11.6, 2.75
    lit = 1.0 if look.lamps_on else 0.2
    colour = palette_colour(look, str(rng.choice(["vivid", "white", "brick"])), rng)
    kit.add(
        Kind.WEDGE,
        frame,
        at=(0, 0, 0.32 + high / 2),
        size=(length, 2.52, high),
        label=c.BUS,
        material=Material.COACH,
        colour=colour,
        accent=palette_colour(look, "white", rng),
        shape=(0.015, 0.005, 0.03, 0),
        tex=(1.5, 0.0, lit, 0),
    )
    kit.add(
        Kind.BOX,
        frame,
        at=(-0.8, 0, 0.32 + high + 0.12),
        size=(4.5, 1.7, 0.26),
        label=c.BUS,
        material=Material.PLAIN,
        colour=(0.6, 0.6, 0.6),
    )
    _wheels(kit, frame, (0.29 * length, -0.27 * length), track=2.36, radius=0.48, label=c.BUS)
    return length


def tram(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A tram of two or three low cars with bellows and a pantograph; returns its length in metres."""
    cars, step, high = int(rng.integers(2, 4)), 9.6, 3.0
    colour = palette_colour(look, str(rng.choice(["vivid", "brick", "white"])), rng)
    accent = palette_colour(look, str(rng.choice(["white", "grey"])), rng)
    lit = 1.0 if look.lamps_on else 0.2
    for k in range(cars):
        x = (k - (cars - 1) / 2) * step
        nose, tail = (0.16 if k == cars - 1 else 0.0), (0.16 if k == 0 else 0.0)
        kit.add(
            Kind.WEDGE,
            frame,
            at=(x, 0, 0.28 + high / 2),
            size=(step - 0.7, 2.45, high),
            label=c.TRAIN,
            material=Material.COACH,
            colour=colour,
            accent=accent,
            shape=(nose, tail, 0.06, 0),
            tex=(2.1, 1.0, lit, 0),
        )
        kit.add(
            Kind.BOX,
            frame,
            at=(x, 0, 0.25),
            size=(step - 2.6, 2.1, 0.4),
            label=c.TRAIN,
            material=Material.PLAIN,
            colour=_DARK,
        )
        kit.add(
            Kind.BOX,
            frame,
            at=(x - 1.2, 0, 0.28 + high + 0.17),
            size=(3.4, 1.5, 0.36),
            label=c.TRAIN,
            material=Material.METAL,
            colour=(0.35, 0.36, 0.37),
        )
        if k:
            kit.add(
                Kind.BOX,
                frame,
                at=(x - step / 2, 0, 0.4 + high / 2),
                size=(0.9, 2.1, high - 0.4),
                label=c.TRAIN,
                material=Material.PLAIN,
                colour=_DARK,
            )
    for lean in (-0.7, 0.7):
        kit.add(
            Kind.ROD,
            frame,
            at=(0.4 + lean * 0.4, 0, high + 0.95),
            size=(0.07, 0.07, 1.5),
            label=c.TRAIN,
            material=Material.METAL,
            colour=_STEEL,
            spin=(0, lean, 0),
        )
    return cars * step


def motorcycle(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A motorcycle: two fat wheels, engine, tank, seat, fork, headlight; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    for x in (-0.68, 0.7):
        _wheel(kit, frame, x, 0.0, radius=0.32, width=0.15, label=c.MOTORCYCLE)
    parts: tuple[tuple[Kind, Vec3, Vec3, Vec3, float], ...] = (
        (Kind.BOX, (0.02, 0, 0.45), (0.62, 0.32, 0.36), _STEEL, 0.0),
        (Kind.BALL, (0.2, 0, 0.82), (0.66, 0.36, 0.36), paint, 0.1),
        (Kind.BOX, (-0.36, 0, 0.8), (0.76, 0.28, 0.13), _DARK, -0.1),
        (Kind.WEDGE, (-0.7, 0, 0.7), (0.42, 0.24, 0.2), paint, -0.2),
        (Kind.ROD, (0.58, 0, 0.68), (0.12, 0.2, 0.85), _STEEL, -0.42),
        (Kind.BOX, (0.36, 0, 1.06), (0.08, 0.78, 0.06), _DARK, 0.0),
        (Kind.BALL, (0.55, 0, 0.93), (0.24, 0.24, 0.24), (0.75, 0.75, 0.7), 0.0),
    )
    for kind, at, size, colour, lean in parts:
        kit.add(
            kind,
            frame,
            at=at,
            size=size,
            label=c.MOTORCYCLE,
            material=Material.PLAIN,
            colour=colour,
            spin=(0, lean, 0),
        )
    return 2.1


def bicycle(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A bicycle: two spoked rings, a tube frame, saddle and handlebar; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    for x in (-0.52, 0.53):
        kit.add(
            Kind.RING,
            frame,
            at=(x, 0, 0.35),
            size=(0.7, 0.1, 0.7),
            label=c.BICYCLE,
            material=Material.PLAIN,
            colour=_RUBBER,
            shape=(0.74, 0, 0, 0),
        )
    tubes: tuple[tuple[Vec3, Vec3], ...] = (
        ((0.4, 0, 0.82), (-0.16, 0, 0.8)),
        ((0.42, 0, 0.78), (0.0, 0, 0.34)),
        ((-0.2, 0, 0.95), (0.0, 0, 0.32)),
        ((-0.16, 0, 0.78), (-0.52, 0, 0.35)),
        ((0.0, 0, 0.33), (-0.52, 0, 0.35)),
        ((0.37, 0, 1.0), (0.53, 0, 0.35)),
    )
    for head, foot in tubes:
        tube(kit, frame, head, foot, width=0.055, label=c.BICYCLE, material=Material.PLAIN, colour=paint)
    for at, size in (((-0.22, 0, 0.97), (0.28, 0.16, 0.09)), ((0.36, 0, 1.02), (0.06, 0.56, 0.06))):
        kit.add(Kind.BOX, frame, at=at, size=size, label=c.BICYCLE, material=Material.PLAIN, colour=_DARK)
    return 1.75


def tube(
    kit: Kit,
    frame: Frame,
    head: Vec3,
    foot: Vec3,
    *,
    width: float,
    label: int,
    material: Material,
    colour: Vec3,
) -> None:
    """A round bar between two points of an object's axes."""
    dx, dy, dz = (float(a - b) for a, b in zip(head, foot, strict=True))
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    middle = tuple((a + b) / 2 for a, b in zip(head, foot, strict=True))
    kit.add(
        Kind.ROD,
        frame,
        at=(middle[0], middle[1], middle[2]),
        size=(width, width, length),
        label=label,
        material=material,
        colour=colour,
        spin=(0.0, math.acos(max(-1.0, min(1.0, dz / length))), math.atan2(dy, dx)),
    )
