"""Motorcycles and bicycles from primitives; x forward, origin on the ground."""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.looks import DrawnLook, palette_colour
from panoda.city.primitives import Frame, Kind, Kit, Material, Vec3

RUBBER: Vec3 = (0.02, 0.02, 0.022)
STEEL: Vec3 = (0.3, 0.31, 0.33)
DARK: Vec3 = (0.035, 0.035, 0.04)


def wheel(kit: Kit, frame: Frame, x: float, y: float, *, radius: float, width: float, label: int) -> None:
    """A tyre with a spoked hub, its axle across the vehicle."""
    kit.add(
        Kind.ROD,
        frame,
        at=(x, y, radius),
        size=(2 * radius, 2 * radius, width),
        label=label,
        material=Material.WHEEL,
        colour=RUBBER,
        accent=STEEL,
        spin=(math.pi / 2, 0.0, 0.0),
    )


def motorcycle(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A motorcycle: two fat wheels, engine, tank, seat, fork, headlight; returns its length in metres."""
    paint = palette_colour(look, "car", rng)
    for x in (-0.68, 0.7):
        wheel(kit, frame, x, 0.0, radius=0.32, width=0.15, label=c.MOTORCYCLE)
    parts: tuple[tuple[Kind, Vec3, Vec3, Vec3, float], ...] = (
        (Kind.BOX, (0.02, 0, 0.45), (0.62, 0.32, 0.36), STEEL, 0.0),
        (Kind.BALL, (0.2, 0, 0.82), (0.66, 0.36, 0.36), paint, 0.1),
        (Kind.BOX, (-0.36, 0, 0.8), (0.76, 0.28, 0.13), DARK, -0.1),
        (Kind.WEDGE, (-0.7, 0, 0.7), (0.42, 0.24, 0.2), paint, -0.2),
        (Kind.ROD, (0.58, 0, 0.68), (0.12, 0.2, 0.85), STEEL, -0.42),
        (Kind.BOX, (0.36, 0, 1.06), (0.08, 0.78, 0.06), DARK, 0.0),
        (Kind.BALL, (0.55, 0, 0.93), (0.24, 0.24, 0.24), (0.75, 0.75, 0.7), 0.0),
    )
    for kind, at, size, colour, lean in parts:
        kit.add(kind, frame, at=at, size=size, label=c.MOTORCYCLE, colour=colour, spin=(0, lean, 0))
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
            colour=RUBBER,
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
        tube(kit, frame, head, foot, width=0.055, label=c.BICYCLE, colour=paint)
    for at, size in (((-0.22, 0, 0.97), (0.28, 0.16, 0.09)), ((0.36, 0, 1.02), (0.06, 0.56, 0.06))):
        kit.add(Kind.BOX, frame, at=at, size=size, label=c.BICYCLE, colour=DARK)
    return 1.75


def tube(
    kit: Kit,
    frame: Frame,
    head: Vec3,
    foot: Vec3,
    *,
    width: float,
    label: int,
    colour: Vec3,
    material: Material = Material.PLAIN,
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
