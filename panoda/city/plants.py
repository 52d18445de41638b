"""Trees, shrubs and hedges from primitives; origin on the ground."""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.looks import DrawnLook
from panoda.city.primitives import Frame, Kind, Kit, Material, Part, Vec3


def leaf_colour(look: DrawnLook, rng: np.random.Generator, *, dark: float = 1.0) -> Vec3:
    """Linear RGB of foliage or grass under the look's dryness."""
    lush, dry = np.array([0.045, 0.115, 0.022]), np.array([0.22, 0.19, 0.07])
    share = np.clip(look.dryness + rng.normal(0, 0.1), 0, 1)
    r, g, b = (
        float(v)
        for v in (lush * (1 - share) + dry * share) * dark * rng.uniform(0.75, 1.3, 3).clip(0.8, 1.25)
    )
    return r, g, b


def _leaves(at: Vec3, size: Vec3, colour: Vec3, *, ragged: float, spin: Vec3 = (0, 0, 0)) -> Part:
    return Part(Kind.BALL, at, size, colour, Material.FOLIAGE, shape=(ragged, 5.0, 0, 0), spin=spin)


def tree(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A street tree of one of the look's kinds."""
    kind = look.params.trees[int(rng.integers(len(look.params.trees)))]
    {"round": _round_tree, "conifer": _conifer, "palm": _palm}[kind](kit, frame, look, rng)


def _trunk(height: float, width: float) -> Part:
    size = (width, width, height)
    return Part(Kind.ROD, (0, 0, height / 2), size, (0.1, 0.075, 0.05), Material.BARK)


def _round_tree(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    height, spread = float(rng.uniform(5.5, 9.5)), float(rng.uniform(1.5, 2.5))
    crown = height * float(rng.uniform(0.35, 0.45))
    kit.add(frame, c.VEGETATION, _trunk(crown + 0.8, float(rng.uniform(0.22, 0.4))))
    colour = leaf_colour(look, rng)
    middle, rise = (crown + height) / 2, (height - crown) / 2
    crown_size = (1.7 * spread, 1.7 * spread, 2 * rise)
    kit.add(frame, c.VEGETATION, _leaves((0, 0, middle), crown_size, colour, ragged=0.25))
    for k in range(int(rng.integers(4, 7))):
        angle = k * 2.4 + float(rng.uniform(0, 0.8))
        out, up = spread * float(rng.uniform(0.4, 0.62)), float(rng.uniform(-0.6, 0.55)) * rise
        size = spread * float(rng.uniform(0.85, 1.25))
        tint = float(rng.uniform(0.85, 1.15))
        shade = (colour[0] * tint, colour[1] * tint, colour[2] * tint)
        at = (out * math.cos(angle), out * math.sin(angle), middle + up)
        kit.add(frame, c.VEGETATION, _leaves(at, (size, size, size * 0.85), shade, ragged=0.35))


def _conifer(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    height = float(rng.uniform(5, 10))
    kit.add(frame, c.VEGETATION, _trunk(1.4, 0.3))
    colour = leaf_colour(look, rng, dark=0.6)
    for k in range(4):
        low = 0.8 + (height - 0.8) * k / 4.6
        high = low + (height - low) * (0.55 if k < 3 else 1.0)
        width = (height - low) * 0.46
        at, size = (0, 0, (low + high) / 2), (width, width, high - low)
        shape, spin = (0.92, 0.92, 0.92, 0), (0, 0, 0.6 * k)
        tier = Part(Kind.WEDGE, at, size, colour, Material.FOLIAGE, shape=shape, spin=spin)
        kit.add(frame, c.VEGETATION, tier)


def _palm(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    height = float(rng.uniform(5, 9))
    kit.add(frame, c.VEGETATION, _trunk(height, 0.3))
    colour = leaf_colour(look, rng)
    fronds = 9
    for k in range(fronds):
        angle = 2 * math.pi * k / fronds + float(rng.uniform(-0.2, 0.2))
        droop = float(rng.uniform(0.25, 0.75)) if k % 3 else -0.35
        reach = 1.15
        at = (
            reach * math.cos(droop) * math.cos(angle),
            reach * math.cos(droop) * math.sin(angle),
            height - reach * math.sin(droop) + 0.1,
        )
        frond = _leaves(at, (2.7, 0.55, 0.22), colour, ragged=0.2, spin=(0, droop, angle))
        kit.add(frame, c.VEGETATION, frond)


def bush(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A low shrub of two or three clumps."""
    colour = leaf_colour(look, rng)
    for _ in range(int(rng.integers(2, 4))):
        size = float(rng.uniform(0.8, 1.7))
        at = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.4, 0.4)), size * 0.35)
        kit.add(frame, c.VEGETATION, _leaves(at, (size, size, size * 0.85), colour, ragged=0.3))


def hedge(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, length: float) -> None:
    """A clipped hedge along x, centred."""
    height = float(rng.uniform(0.9, 1.8))
    colour, shape = leaf_colour(look, rng, dark=0.8), (0.02, 0.02, 0.12, 0)
    part = Part(Kind.WEDGE, (0, 0, height / 2), (length, 0.8, height), colour, Material.FOLIAGE, shape=shape)
    kit.add(frame, c.VEGETATION, part)
