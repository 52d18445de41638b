"""Pedestrians and riders from primitives; x forward, origin on the ground."""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.cycles import bicycle, motorcycle, tube
from panoda.city.looks import DrawnLook, palette_colour
from panoda.city.primitives import Frame, Kind, Kit, Material, Vec3, Vec4


def _head(kit: Kit, frame: Frame, at: Vec3, *, scale: float, label: int, skin: Vec3, hair: Vec3) -> None:
    x, y, z = at
    kit.add(Kind.BALL, frame, at=at, size=(0.2 * scale, 0.17 * scale, 0.25 * scale), label=label, colour=skin)
    kit.add(
        Kind.BALL,
        frame,
        at=(x - 0.02 * scale, y, z + 0.05 * scale),
        size=(0.22 * scale, 0.2 * scale, 0.2 * scale),
        label=label,
        colour=hair,
    )


def pedestrian(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A standing or walking person: legs, torso, arms, head; sometimes a skirt or a bag."""
    s = float(rng.choice([rng.uniform(0.94, 1.08), rng.uniform(0.6, 0.8)], p=[0.88, 0.12]))
    stride = float(rng.choice([0.0, rng.uniform(0.12, 0.32)], p=[0.3, 0.7])) * s
    trousers, shirt = palette_colour(look, "cloth", rng), palette_colour(look, "cloth", rng)
    skin = palette_colour(look, "skin", rng, shift=False)
    hair = (0.02, 0.015, 0.012) if rng.random() < 0.7 else (0.22, 0.14, 0.07)
    _limbs(kit, frame, scale=s, stride=stride, trousers=trousers, shirt=shirt)
    pieces: list[tuple[Kind, Vec3, Vec3, Vec3, Vec4, Vec3]] = [
        # Upside down, so that the shoulders are wider than the hips.
        (Kind.WEDGE, (0, 0, 1.17), (0.26, 0.44, 0.68), shirt, (0.1, 0.1, 0.18, 0), (math.pi, 0, 0))
    ]
    if rng.random() < 0.2:  # skirt or long coat
        pieces.append((Kind.WEDGE, (0, 0, 0.68), (0.42, 0.52, 0.55), shirt, (0.4, 0.4, 0.35, 0), (0, 0, 0)))
    if rng.random() < 0.25:  # rucksack
        bag = palette_colour(look, "cloth", rng)
        pieces.append((Kind.BOX, (-0.22, 0, 1.2), (0.2, 0.34, 0.45), bag, (0, 0, 0, 0), (0, 0, 0)))
    for kind, at, size, colour, shape, spin in pieces:
        kit.add(
            kind,
            frame,
            at=_times(at, s),
            size=_times(size, s),
            label=c.PERSON,
            colour=colour,
            material=Material.CLOTH,
            shape=shape,
            spin=spin,
        )
    _head(kit, frame, (0.02, 0, 1.66 * s), scale=s, label=c.PERSON, skin=skin, hair=hair)


def _times(vector: Vec3, scale: float) -> Vec3:
    x, y, z = vector
    return x * scale, y * scale, z * scale


def _limbs(kit: Kit, frame: Frame, *, scale: float, stride: float, trousers: Vec3, shirt: Vec3) -> None:
    """Legs a stride apart, arms swinging against them."""
    for side in (-1, 1):
        leg = (0, side * 0.09 * scale, 0.88 * scale), (side * stride, side * 0.1 * scale, 0.03)
        arm = (
            (0, side * 0.22 * scale, 1.41 * scale),
            (-side * stride * 0.8, side * 0.29 * scale, 0.78 * scale),
        )
        for (head, foot), width, colour in ((leg, 0.17, trousers), (arm, 0.11, shirt)):
            tube(
                kit,
                frame,
                head,
                foot,
                width=width * scale,
                label=c.PERSON,
                colour=colour,
                material=Material.CLOTH,
            )


def _rider(
    kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, hip: Vec3, hand: Vec3, foot: Vec3
) -> None:
    """A rider leaning from the hip towards the handlebar."""
    shirt, trousers = palette_colour(look, "cloth", rng), palette_colour(look, "cloth", rng)
    neck: Vec3 = (hip[0] + 0.26, 0.0, hip[2] + 0.55)
    middle = ((hip[0] + neck[0]) / 2, 0.0, (hip[2] + neck[2]) / 2)
    kit.add(
        Kind.WEDGE,
        frame,
        at=middle,
        size=(0.25, 0.42, 0.68),
        label=c.RIDER,
        material=Material.CLOTH,
        colour=shirt,
        shape=(0.1, 0.1, 0.18, 0),  # upside down: wide shoulders
        spin=(math.pi, 0.42, 0),
    )
    for side in (-1, 1):
        knee = ((hip[0] + foot[0]) / 2 + 0.24, side * 0.14, (hip[2] + foot[2]) / 2 + 0.1)
        ankle = (foot[0], side * 0.13, foot[2] + side * 0.1)
        thigh = (hip[0], side * 0.09, hip[2])
        for head, end in ((thigh, knee), (knee, ankle)):
            tube(kit, frame, head, end, width=0.16, label=c.RIDER, material=Material.CLOTH, colour=trousers)
        shoulder = (neck[0], side * 0.2, neck[2] - 0.06)
        grip = (hand[0], side * 0.26, hand[2])
        tube(kit, frame, shoulder, grip, width=0.11, label=c.RIDER, material=Material.CLOTH, colour=shirt)
    skin = palette_colour(look, "skin", rng, shift=False)
    helmet = palette_colour(look, "car", rng)
    _head(kit, frame, (neck[0] + 0.06, 0, neck[2] + 0.2), scale=1.1, label=c.RIDER, skin=skin, hair=helmet)


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
