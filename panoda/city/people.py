"""Pedestrians and riders from primitives; x forward, origin on the ground."""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.looks import DrawnLook, palette_colour
from panoda.city.primitives import Frame, Kind, Kit, Material, Part, Vec3, Vec4
from panoda.city.vehicles import bicycle, motorcycle, tube


def _head(at: Vec3, *, scale: float, skin: Vec3, hair: Vec3) -> tuple[Part, Part]:
    x, y, z = at
    above = (x - 0.02 * scale, y, z + 0.05 * scale)
    return (
        Part(Kind.BALL, at, (0.2 * scale, 0.17 * scale, 0.25 * scale), skin),
        Part(Kind.BALL, above, (0.22 * scale, 0.2 * scale, 0.2 * scale), hair),
    )


def pedestrian(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A standing or walking person: legs, torso, arms, head; sometimes a skirt or a bag."""
    s = float(rng.choice([rng.uniform(0.94, 1.08), rng.uniform(0.6, 0.8)], p=[0.88, 0.12]))
    stride = float(rng.choice([0.0, rng.uniform(0.12, 0.32)], p=[0.3, 0.7])) * s
    trousers, shirt = palette_colour(look, "cloth", rng), palette_colour(look, "cloth", rng)
    skin = palette_colour(look, "skin", rng, shift=False)
    hair = (0.02, 0.015, 0.012) if rng.random() < 0.7 else (0.22, 0.14, 0.07)
    pieces: list[tuple[Kind, Vec3, Vec3, Vec3, Vec4, Vec3]] = [
        # Upside down, so that the shoulders are wider than the hips.
        (Kind.WEDGE, (0, 0, 1.17), (0.26, 0.44, 0.68), shirt, (0.1, 0.1, 0.18, 0), (math.pi, 0, 0))
    ]
    if rng.random() < 0.2:  # skirt or long coat
        pieces.append((Kind.WEDGE, (0, 0, 0.68), (0.42, 0.52, 0.55), shirt, (0.4, 0.4, 0.35, 0), (0, 0, 0)))
    if rng.random() < 0.25:  # rucksack
        bag = palette_colour(look, "cloth", rng)
        pieces.append((Kind.BOX, (-0.22, 0, 1.2), (0.2, 0.34, 0.45), bag, (0, 0, 0, 0), (0, 0, 0)))
    kit.add(
        frame,
        c.PERSON,
        *_limbs(scale=s, stride=stride, trousers=trousers, shirt=shirt),
        *(
            Part(kind, _times(at, s), _times(size, s), colour, Material.CLOTH, shape=shape, spin=spin)
            for kind, at, size, colour, shape, spin in pieces
        ),
        *_head((0.02, 0, 1.66 * s), scale=s, skin=skin, hair=hair),
    )


def _times(vector: Vec3, scale: float) -> Vec3:
    x, y, z = vector
    return x * scale, y * scale, z * scale


def _limbs(*, scale: float, stride: float, trousers: Vec3, shirt: Vec3) -> list[Part]:
    """Legs a stride apart, arms swinging against them."""
    limbs = []
    for side in (-1, 1):
        hip, foot = (0, side * 0.09 * scale, 0.88 * scale), (side * stride, side * 0.1 * scale, 0.03)
        shoulder = (0, side * 0.22 * scale, 1.41 * scale)
        hand = (-side * stride * 0.8, side * 0.29 * scale, 0.78 * scale)
        limbs.append(tube(hip, foot, width=0.17 * scale, colour=trousers, material=Material.CLOTH))
        limbs.append(tube(shoulder, hand, width=0.11 * scale, colour=shirt, material=Material.CLOTH))
    return limbs


def _rider(
    kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, hip: Vec3, hand: Vec3, foot: Vec3
) -> None:
    """A rider leaning from the hip towards the handlebar."""
    shirt, trousers = palette_colour(look, "cloth", rng), palette_colour(look, "cloth", rng)
    neck: Vec3 = (hip[0] + 0.26, 0.0, hip[2] + 0.55)
    middle = ((hip[0] + neck[0]) / 2, 0.0, (hip[2] + neck[2]) / 2)
    shape, spin = (0.1, 0.1, 0.18, 0), (math.pi, 0.42, 0)  # upside down: wide shoulders
    parts = [Part(Kind.WEDGE, middle, (0.25, 0.42, 0.68), shirt, Material.CLOTH, shape=shape, spin=spin)]
    for side in (-1, 1):
        knee = ((hip[0] + foot[0]) / 2 + 0.24, side * 0.14, (hip[2] + foot[2]) / 2 + 0.1)
        ankle = (foot[0], side * 0.13, foot[2] + side * 0.1)
        thigh = (hip[0], side * 0.09, hip[2])
        for head, end in ((thigh, knee), (knee, ankle)):
            parts.append(tube(head, end, width=0.16, colour=trousers, material=Material.CLOTH))
        shoulder = (neck[0], side * 0.2, neck[2] - 0.06)
        grip = (hand[0], side * 0.26, hand[2])
        parts.append(tube(shoulder, grip, width=0.11, colour=shirt, material=Material.CLOTH))
    skin = palette_colour(look, "skin", rng, shift=False)
    helmet = palette_colour(look, "car", rng)
    parts += _head((neck[0] + 0.06, 0, neck[2] + 0.2), scale=1.1, skin=skin, hair=helmet)
    kit.add(frame, c.RIDER, *parts)


def cyclist(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A rider on a bicycle; returns the length in metres."""
    length = bicycle(kit, frame, look, rng)
    _rider(kit, frame, look, rng, hip=(-0.2, 0, 1.0), hand=(0.36, 0, 1.03), foot=(0.02, 0, 0.34))
    return length


def motorcyclist(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> float:
    """A rider on a motorcycle; returns the length in metres."""
    length = motorcycle(kit, frame, look, rng)
    _rider(kit, frame, look, rng, hip=(-0.3, 0, 0.9), hand=(0.36, 0, 1.06), foot=(0.0, 0, 0.36))
    return length
