"""Motorcycles and bicycles from primitives; x forward, origin on the ground."""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.looks import DrawnLook, palette_colour
from panoda.city.primitives import Frame, Kind, Kit, Material, Part, Vec3

RUBBER: Vec3 = (0.02, 0.02, 0.022)
STEEL: Vec3 = (0.3, 0.31, 0.33)
DARK: Vec3 = (0.035, 0.035, 0.04)


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
