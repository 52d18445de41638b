"""Street furniture and plants from primitives: lamps, lights, signs, trees, walls, fences, hedges.

Origin on the ground; x forward is the direction of travel the object serves, y left.
"""

from __future__ import annotations

import math

import numpy as np

from panoda.data.city import classes as c
from panoda.data.city.looks import DrawnLook, palette_colour
from panoda.data.city.primitives import Frame, Kind, Kit, Material, Vec3

_GALVANISED: Vec3 = (0.28, 0.29, 0.3)
_GREEN_PAINT: Vec3 = (0.03, 0.06, 0.05)


def _post(kit: Kit, frame: Frame, *, height: float, width: float, colour: Vec3, left: float = 0.0) -> None:
    kit.add(
        Kind.ROD,
        frame,
        at=(0, left, height / 2),
        size=(width, width, height),
        label=c.POLE,
        material=Material.METAL,
        colour=colour,
    )


def _bar(kit: Kit, frame: Frame, *, at: Vec3, size: Vec3, colour: Vec3) -> None:
    kit.add(Kind.BOX, frame, at=at, size=size, label=c.POLE, material=Material.METAL, colour=colour)


def street_lamp(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A lamp post; an arm to the left (over the road), or a lantern on a short post."""
    glow = (1.0, 0.75, 0.4) if look.lamps_on else (0.5, 0.5, 0.48)
    if rng.random() < 0.3:
        _post(kit, frame, height=3.8, width=0.14, colour=_GREEN_PAINT)
        kit.add(
            Kind.WEDGE,
            frame,
            at=(0, 0, 4.1),
            size=(0.4, 0.4, 0.55),
            label=c.POLE,
            material=Material.GLOW,
            colour=glow,
            shape=(0.5, 0.5, 0.5, 0),
            tex=(2.0 if look.lamps_on else 0.0, 0, 0, 0),
            spin=(math.pi, 0, 0),
        )
        return
    height, arm = float(rng.uniform(6.5, 8.5)), float(rng.uniform(1.2, 2.2))
    _post(kit, frame, height=height, width=0.2, colour=_GALVANISED)
    _bar(kit, frame, at=(0, arm / 2, height - 0.05), size=(0.1, arm, 0.1), colour=_GALVANISED)
    kit.add(
        Kind.BOX,
        frame,
        at=(0, arm, height - 0.08),
        size=(0.3, 0.7, 0.14),
        label=c.POLE,
        material=Material.GLOW,
        colour=glow,
        tex=(2.0 if look.lamps_on else 0.0, 0, 0, 0),
    )


def _light_head(kit: Kit, frame: Frame, *, left: float, up: float, state: float) -> None:
    """A three-lamp head facing backwards along x, towards oncoming drivers."""
    kit.add(
        Kind.BOX,
        frame,
        at=(-0.2, left, up),
        size=(0.32, 0.44, 1.16),
        label=c.LIGHT,
        material=Material.LAMP_HEAD,
        colour=(0.02, 0.022, 0.022),
        tex=(state, 0, 0, 0),
    )


def traffic_light(kit: Kit, frame: Frame, rng: np.random.Generator, *, arm: float = 0.0) -> None:
    """A signal post; with ``arm`` metres of mast arm to the left it also hangs a head over the road."""
    state = float(rng.integers(3))
    height = 5.6 if arm else 3.3
    _post(kit, frame, height=height, width=0.16, colour=_GALVANISED)
    _light_head(kit, frame, left=0.0, up=2.85, state=state)
    if arm:
        _bar(kit, frame, at=(0, arm / 2, height - 0.1), size=(0.12, arm, 0.12), colour=_GALVANISED)
        _light_head(kit, frame, left=arm, up=height - 0.35, state=state)


def traffic_sign(kit: Kit, frame: Frame, rng: np.random.Generator) -> None:
    """One or two plates on a thin post: disc, triangle, square or diamond, with a pictogram."""
    height = float(rng.uniform(2.3, 2.9))
    _post(kit, frame, height=height + 0.3, width=0.08, colour=_GALVANISED)
    for k in range(1 if rng.random() < 0.7 else 2):
        _plate(kit, frame, up=height - 0.85 * k, rng=rng)


def _plate(kit: Kit, frame: Frame, *, up: float, rng: np.random.Generator) -> None:
    red, blue, white, yellow = (0.5, 0.02, 0.02), (0.02, 0.08, 0.4), (0.75, 0.75, 0.75), (0.7, 0.45, 0.03)
    motif = int(rng.choice(5, p=[0.3, 0.2, 0.2, 0.2, 0.1]))
    kind, size, shape, colour, accent, spin = (
        (Kind.ROD, (0.76, 0.76, 0.06), (0, 0, 0, 0), white, red, (0, math.pi / 2, 0)),  # prohibition
        (Kind.WEDGE, (0.06, 0.9, 0.8), (0, 0, 1, 0), white, red, (0, 0, 0)),  # warning
        (Kind.BOX, (0.06, 0.72, 0.72), (0, 0, 0, 0), blue, white, (0, 0, 0)),  # information
        (Kind.ROD, (0.74, 0.74, 0.06), (0, 0, 0, 0), blue, white, (0, math.pi / 2, 0)),  # command
        (Kind.BOX, (0.06, 0.6, 0.6), (0, 0, 0, 0), yellow, white, (math.pi / 4, 0, 0)),  # priority
    )[motif]
    kit.add(
        kind,
        frame,
        at=(-0.08, 0, up),
        size=size,
        label=c.SIGN,
        material=Material.SIGN,
        colour=colour,
        accent=accent,
        shape=shape,
        tex=(float(motif), 0, 0, 0),
        spin=spin,
    )


def direction_board(kit: Kit, frame: Frame, rng: np.random.Generator) -> None:
    """A large direction sign on two posts."""
    for side in (-0.9, 0.9):
        _post(kit, frame, height=2.6, width=0.1, colour=_GALVANISED, left=side)
    colour = (0.02, 0.08, 0.35) if rng.random() < 0.5 else (0.03, 0.2, 0.08)
    kit.add(
        Kind.BOX,
        frame,
        at=(-0.1, 0, 2.9),
        size=(0.07, 2.4, 1.4),
        label=c.SIGN,
        material=Material.SIGN,
        colour=colour,
        accent=(0.75, 0.75, 0.75),
        tex=(5.0, 0, 0, 0),
    )


def bollard(kit: Kit, frame: Frame) -> None:
    """A knee-high post."""
    _post(kit, frame, height=0.95, width=0.16, colour=(0.06, 0.06, 0.065))


def leaf_colour(look: DrawnLook, rng: np.random.Generator, *, dark: float = 1.0) -> Vec3:
    """Linear RGB of foliage or grass under the look's dryness."""
    lush, dry = np.array([0.045, 0.115, 0.022]), np.array([0.22, 0.19, 0.07])
    share = np.clip(look.dryness + rng.normal(0, 0.1), 0, 1)
    r, g, b = (
        float(v)
        for v in (lush * (1 - share) + dry * share) * dark * rng.uniform(0.75, 1.3, 3).clip(0.8, 1.25)
    )
    return r, g, b


def _leaves(
    kit: Kit, frame: Frame, at: Vec3, size: Vec3, colour: Vec3, *, ragged: float, spin: Vec3 = (0, 0, 0)
) -> None:
    kit.add(
        Kind.BALL,
        frame,
        at=at,
        size=size,
        label=c.VEGETATION,
        material=Material.FOLIAGE,
        colour=colour,
        shape=(ragged, 5.0, 0, 0),
        spin=spin,
    )


def tree(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A street tree of one of the look's kinds."""
    kind = look.params.trees[int(rng.integers(len(look.params.trees)))]
    {"round": _round_tree, "conifer": _conifer, "palm": _palm}[kind](kit, frame, look, rng)


def _trunk(kit: Kit, frame: Frame, height: float, width: float) -> None:
    kit.add(
        Kind.ROD,
        frame,
        at=(0, 0, height / 2),
        size=(width, width, height),
        label=c.VEGETATION,
        material=Material.BARK,
        colour=(0.1, 0.075, 0.05),
    )


def _round_tree(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    height, spread = float(rng.uniform(5.5, 9.5)), float(rng.uniform(1.5, 2.5))
    crown = height * float(rng.uniform(0.35, 0.45))
    _trunk(kit, frame, crown + 0.8, float(rng.uniform(0.22, 0.4)))
    colour = leaf_colour(look, rng)
    middle, rise = (crown + height) / 2, (height - crown) / 2
    _leaves(kit, frame, (0, 0, middle), (1.7 * spread, 1.7 * spread, 2 * rise), colour, ragged=0.25)
    for k in range(int(rng.integers(4, 7))):
        angle = k * 2.4 + float(rng.uniform(0, 0.8))
        out, up = spread * float(rng.uniform(0.4, 0.62)), float(rng.uniform(-0.6, 0.55)) * rise
        size = spread * float(rng.uniform(0.85, 1.25))
        tint = float(rng.uniform(0.85, 1.15))
        shade = (colour[0] * tint, colour[1] * tint, colour[2] * tint)
        at = (out * math.cos(angle), out * math.sin(angle), middle + up)
        _leaves(kit, frame, at, (size, size, size * 0.85), shade, ragged=0.35)


def _conifer(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    height = float(rng.uniform(5, 10))
    _trunk(kit, frame, 1.4, 0.3)
    colour = leaf_colour(look, rng, dark=0.6)
    for k in range(4):
        low = 0.8 + (height - 0.8) * k / 4.6
        high = low + (height - low) * (0.55 if k < 3 else 1.0)
        width = (height - low) * 0.46
        kit.add(
            Kind.WEDGE,
            frame,
            at=(0, 0, (low + high) / 2),
            size=(width, width, high - low),
            label=c.VEGETATION,
            material=Material.FOLIAGE,
            colour=colour,
            shape=(0.92, 0.92, 0.92, 0),
            spin=(0, 0, 0.6 * k),
        )


def _palm(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    height = float(rng.uniform(5, 9))
    _trunk(kit, frame, height, 0.3)
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
        _leaves(kit, frame, at, (2.7, 0.55, 0.22), colour, ragged=0.2, spin=(0, droop, angle))


def bush(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A low shrub of two or three clumps."""
    colour = leaf_colour(look, rng)
    for _ in range(int(rng.integers(2, 4))):
        size = float(rng.uniform(0.8, 1.7))
        at = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.4, 0.4)), size * 0.35)
        _leaves(kit, frame, at, (size, size, size * 0.85), colour, ragged=0.3)


def hedge(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, length: float) -> None:
    """A clipped hedge along x, centred."""
    height = float(rng.uniform(0.9, 1.8))
    kit.add(
        Kind.WEDGE,
        frame,
        at=(0, 0, height / 2),
        size=(length, 0.8, height),
        label=c.VEGETATION,
        material=Material.FOLIAGE,
        colour=leaf_colour(look, rng, dark=0.8),
        shape=(0.02, 0.02, 0.12, 0),
    )


def wall(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, length: float) -> None:
    """A free-standing brick or rendered wall along x with a coping and piers."""
    height = float(rng.uniform(1.3, 2.4))
    brick = rng.random() < 0.6
    colour = palette_colour(look, "brick" if brick else str(rng.choice(["grey", "earth", "white"])), rng)
    kit.add(
        Kind.BOX,
        frame,
        at=(0, 0, height / 2),
        size=(length, 0.3, height),
        label=c.WALL,
        material=Material.MASONRY,
        colour=colour,
        accent=(0.45, 0.43, 0.4),
        tex=(1.0 if brick else 0.0, 0, 0, 0),
    )
    kit.add(
        Kind.BOX,
        frame,
        at=(0, 0, height + 0.05),
        size=(length + 0.1, 0.44, 0.12),
        label=c.WALL,
        material=Material.PLAIN,
        colour=(0.4, 0.38, 0.36),
    )
    for x in np.linspace(-length / 2, length / 2, max(2, int(length / 5) + 1)):
        kit.add(
            Kind.BOX,
            frame,
            at=(float(x), 0, height / 2 + 0.08),
            size=(0.45, 0.45, height + 0.16),
            label=c.WALL,
            material=Material.MASONRY,
            colour=colour,
            accent=(0.45, 0.43, 0.4),
            tex=(1.0 if brick else 0.0, 0, 0, 0),
        )


def fence(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, length: float) -> None:
    """A picket fence or iron railing along x, with posts."""
    wood = rng.random() < 0.55
    height = float(rng.uniform(0.9, 1.5))
    colour = palette_colour(look, str(rng.choice(["white", "earth"])), rng) if wood else (0.03, 0.04, 0.035)
    kit.add(
        Kind.PICKET,
        frame,
        at=(0, 0, height / 2 + 0.04),
        size=(length, 0.06, height),
        label=c.FENCE,
        material=Material.PALING,
        colour=colour,
        shape=(0.16, 0.68, 0, 0) if wood else (0.13, 0.34, 0, 0),
    )
    for x in np.linspace(-length / 2, length / 2, max(2, int(length / 2.5) + 1)):
        kit.add(
            Kind.BOX,
            frame,
            at=(float(x), 0, height / 2 + 0.08),
            size=(0.12, 0.12, height + 0.12),
            label=c.FENCE,
            material=Material.PLAIN,
            colour=colour,
        )
