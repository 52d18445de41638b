"""Street furniture from primitives: lamps, lights, signs, bollards, walls, fences.

Origin on the ground; x forward is the direction of travel the object serves, y left.
"""

from __future__ import annotations

import math

import numpy as np

from panoda.city import classes as c
from panoda.city.looks import DrawnLook, palette_colour
from panoda.city.primitives import Frame, Kind, Kit, Material, Part, Vec3

_GALVANISED: Vec3 = (0.28, 0.29, 0.3)
_GREEN_PAINT: Vec3 = (0.03, 0.06, 0.05)


def _post(*, height: float, width: float, colour: Vec3 = _GALVANISED, left: float = 0.0) -> Part:
    return Part(Kind.ROD, (0, left, height / 2), (width, width, height), colour, Material.METAL)


def street_lamp(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator) -> None:
    """A lamp post; an arm to the left (over the road), or a lantern on a short post."""
    glow = (1.0, 0.75, 0.4) if look.lamps_on else (0.5, 0.5, 0.48)
    lit = (2.0 if look.lamps_on else 0.0, 0, 0, 0)
    if rng.random() < 0.3:
        shape, spin = (0.5, 0.5, 0.5, 0), (math.pi, 0, 0)
        kit.add(
            frame,
            c.POLE,
            _post(height=3.8, width=0.14, colour=_GREEN_PAINT),
            Part(
                Kind.WEDGE,
                (0, 0, 4.1),
                (0.4, 0.4, 0.55),
                glow,
                Material.GLOW,
                shape=shape,
                tex=lit,
                spin=spin,
            ),
        )
        return
    height, arm = float(rng.uniform(6.5, 8.5)), float(rng.uniform(1.2, 2.2))
    kit.add(
        frame,
        c.POLE,
        _post(height=height, width=0.2),
        Part(Kind.BOX, (0, arm / 2, height - 0.05), (0.1, arm, 0.1), _GALVANISED, Material.METAL),
        Part(Kind.BOX, (0, arm, height - 0.08), (0.3, 0.7, 0.14), glow, Material.GLOW, tex=lit),
    )


def _light_head(*, left: float, up: float, state: float) -> Part:
    """A three-lamp head facing backwards along x, towards oncoming drivers."""
    size, colour = (0.32, 0.44, 1.16), (0.02, 0.022, 0.022)
    return Part(Kind.BOX, (-0.2, left, up), size, colour, Material.LAMP_HEAD, tex=(state, 0, 0, 0))


def traffic_light(kit: Kit, frame: Frame, rng: np.random.Generator, *, arm: float = 0.0) -> None:
    """A signal post; with ``arm`` metres of mast arm to the left it also hangs a head over the road."""
    state = float(rng.integers(3))
    height = 5.6 if arm else 3.3
    kit.add(frame, c.POLE, _post(height=height, width=0.16))
    kit.add(frame, c.LIGHT, _light_head(left=0.0, up=2.85, state=state))
    if arm:
        bar = Part(Kind.BOX, (0, arm / 2, height - 0.1), (0.12, arm, 0.12), _GALVANISED, Material.METAL)
        kit.add(frame, c.POLE, bar)
        kit.add(frame, c.LIGHT, _light_head(left=arm, up=height - 0.35, state=state))


def traffic_sign(kit: Kit, frame: Frame, rng: np.random.Generator) -> None:
    """One or two plates on a thin post: disc, triangle, square or diamond, with a pictogram."""
    height = float(rng.uniform(2.3, 2.9))
    kit.add(frame, c.POLE, _post(height=height + 0.3, width=0.08))
    for k in range(1 if rng.random() < 0.7 else 2):
        kit.add(frame, c.SIGN, _plate(rng, up=height - 0.85 * k))


def _plate(rng: np.random.Generator, *, up: float) -> Part:
    red, blue, white, yellow = (0.5, 0.02, 0.02), (0.02, 0.08, 0.4), (0.75, 0.75, 0.75), (0.7, 0.45, 0.03)
    motif = int(rng.choice(5, p=[0.3, 0.2, 0.2, 0.2, 0.1]))
    kind, size, shape, colour, accent, spin = (
        (Kind.ROD, (0.76, 0.76, 0.06), (0, 0, 0, 0), white, red, (0, math.pi / 2, 0)),  # prohibition
        (Kind.WEDGE, (0.06, 0.9, 0.8), (0, 0, 1, 0), white, red, (0, 0, 0)),  # warning
        (Kind.BOX, (0.06, 0.72, 0.72), (0, 0, 0, 0), blue, white, (0, 0, 0)),  # information
        (Kind.ROD, (0.74, 0.74, 0.06), (0, 0, 0, 0), blue, white, (0, math.pi / 2, 0)),  # command
        (Kind.BOX, (0.06, 0.6, 0.6), (0, 0, 0, 0), yellow, white, (math.pi / 4, 0, 0)),  # priority
    )[motif]
    tex = (float(motif), 0, 0, 0)
    return Part(kind, (-0.08, 0, up), size, colour, Material.SIGN, accent, shape, tex, spin)


def direction_board(kit: Kit, frame: Frame, rng: np.random.Generator) -> None:
    """A large direction sign on two posts."""
    kit.add(frame, c.POLE, *(_post(height=2.6, width=0.1, left=side) for side in (-0.9, 0.9)))
    colour = (0.02, 0.08, 0.35) if rng.random() < 0.5 else (0.03, 0.2, 0.08)
    accent, tex = (0.75, 0.75, 0.75), (5.0, 0, 0, 0)
    board = Part(Kind.BOX, (-0.1, 0, 2.9), (0.07, 2.4, 1.4), colour, Material.SIGN, accent, tex=tex)
    kit.add(frame, c.SIGN, board)


def bollard(kit: Kit, frame: Frame) -> None:
    """A knee-high post."""
    kit.add(frame, c.POLE, _post(height=0.95, width=0.16, colour=(0.06, 0.06, 0.065)))


def wall(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, length: float) -> None:
    """A free-standing brick or rendered wall along x with a coping and piers."""
    height = float(rng.uniform(1.3, 2.4))
    brick = rng.random() < 0.6
    colour = palette_colour(look, "brick" if brick else str(rng.choice(["grey", "earth", "white"])), rng)
    accent, bond = (0.45, 0.43, 0.4), (1.0 if brick else 0.0, 0, 0, 0)

    def masonry(at: Vec3, size: Vec3) -> Part:
        return Part(Kind.BOX, at, size, colour, Material.MASONRY, accent, tex=bond)

    kit.add(
        frame,
        c.WALL,
        masonry((0, 0, height / 2), (length, 0.3, height)),
        Part(Kind.BOX, (0, 0, height + 0.05), (length + 0.1, 0.44, 0.12), (0.4, 0.38, 0.36)),
        *(
            masonry((float(x), 0, height / 2 + 0.08), (0.45, 0.45, height + 0.16))
            for x in np.linspace(-length / 2, length / 2, max(2, int(length / 5) + 1))
        ),
    )


def fence(kit: Kit, frame: Frame, look: DrawnLook, rng: np.random.Generator, *, length: float) -> None:
    """A picket fence or iron railing along x, with posts."""
    wood = rng.random() < 0.55
    height = float(rng.uniform(0.9, 1.5))
    colour = palette_colour(look, str(rng.choice(["white", "earth"])), rng) if wood else (0.03, 0.04, 0.035)
    gaps, size = (0.16, 0.68, 0, 0) if wood else (0.13, 0.34, 0, 0), (length, 0.06, height)
    kit.add(
        frame,
        c.FENCE,
        Part(Kind.PICKET, (0, 0, height / 2 + 0.04), size, colour, Material.PALING, shape=gaps),
        *(
            Part(Kind.BOX, (float(x), 0, height / 2 + 0.08), (0.12, 0.12, height + 0.12), colour)
            for x in np.linspace(-length / 2, length / 2, max(2, int(length / 2.5) + 1))
        ),
    )
