"""Streets as polylines with a cross-section, and the network's distance field.

Lateral offsets are positive to the left of a street's own direction; traffic keeps right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from panoda.city.primitives import Frame

KERB_HEIGHT = 0.13
KERB_RADIUS = 3.5
PARKING_WIDTH = 2.2
LANE_WIDTH = 3.2


@dataclass(frozen=True, eq=False)
class Street:
    """One street.

    Attributes:
        points: (k, 2) corners of the centre line in metres.
        lanes: Lanes per direction.
        parking: Whether cars park along both kerbs, inside the carriageway.
        tram: Whether tracks run in the middle.
        cycle: Whether coloured cycle lanes run along the kerbs.
        sidewalk: Width of each sidewalk in metres.
        verge: Width of a grass strip between kerb and sidewalk in metres.
    """

    points: np.ndarray
    lanes: int
    parking: bool
    tram: bool
    cycle: bool
    sidewalk: float
    verge: float

    @property
    def half(self) -> float:
        """Half width of the carriageway in metres."""
        extra = PARKING_WIDTH if self.parking else 1.7 if self.cycle else 0.3
        return self.lanes * LANE_WIDTH + extra + (1.6 if self.tram else 0.0)

    @property
    def kerb_to_front(self) -> float:
        """From the kerb to the building line in metres."""
        return self.sidewalk + self.verge

    @property
    def length(self) -> float:
        """Length of the centre line in metres."""
        return self._legs[-1][1]

    @cached_property
    def _legs(self) -> list[tuple[float, float, float, float, float, float]]:
        """Per segment: where it starts and ends along the street, its start point, its direction."""
        legs, along = [], 0.0
        for (x0, y0), (x1, y1) in zip(self.points[:-1].tolist(), self.points[1:].tolist(), strict=True):
            length = math.hypot(x1 - x0, y1 - y0)
            legs.append((along, along + length, x0, y0, (x1 - x0) / length, (y1 - y0) / length))
            along += length
        return legs

    def lane(self, index: int) -> float:
        """Lateral offset of the middle of a lane of the street's own direction (negative: right)."""
        return -(LANE_WIDTH * (index + 0.5) + (1.6 if self.tram else 0.0))

    def at(self, along: float, lateral: float) -> Frame:
        """The frame at ``along`` metres from the start, ``lateral`` metres to the left."""
        start, _, x, y, ux, uy = next((leg for leg in self._legs if along <= leg[1]), self._legs[-1])
        reach = along - start
        return Frame(x + ux * reach - uy * lateral, y + uy * reach + ux * lateral, 0.0, math.atan2(uy, ux))

    def turn_at(self, along: float, span: float) -> bool:
        """Whether the centre line bends within ``span`` metres of ``along``."""
        return any(abs(leg[1] - along) < span for leg in self._legs[:-1])


@dataclass(frozen=True)
class StreetField:
    """The network as tensors, for looking ground points up.

    Attributes:
        start: (M, 2) segment starts.
        unit: (M, 2) segment directions.
        length: (M,) segment lengths.
        offset: (M,) distance along the street at each segment's start.
        counts: Segments per street.
        traits: (S, 8): half width, sidewalk, verge, lanes, parking, tram, cycle, spare.
    """

    start: Tensor
    unit: Tensor
    length: Tensor
    offset: Tensor
    counts: tuple[int, ...]
    traits: Tensor

    def look_up(self, points: Tensor) -> Ground:
        """Where ground points lie in the network."""
        px, py = points[:, :1] - self.start[:, 0], points[:, 1:] - self.start[:, 1]  # (n, M)
        along = px * self.unit[:, 0] + py * self.unit[:, 1]
        lateral = py * self.unit[:, 0] - px * self.unit[:, 1]
        past = along - along.clamp_min(0).minimum(self.length)
        distance = torch.sqrt(past * past + lateral * lateral)
        edges, picks = [], []
        first = 0
        for half, count in zip(self.traits[:, 0], self.counts, strict=True):
            d, pick = distance[:, first : first + count].min(dim=1)
            edges.append(d - half)
            picks.append(pick + first)
            first += count
        edge = torch.stack(edges, dim=1)  # (n, S)
        nearest, street = edge.min(dim=1)
        if len(self.counts) > 1:
            other = edge.scatter(1, street[:, None], float("inf")).amin(1)
            a, b = (KERB_RADIUS - nearest).clamp_min(0), (KERB_RADIUS - other).clamp_min(0)
            rounded = KERB_RADIUS - torch.sqrt(a * a + b * b)
            corner = (nearest > 0) & (nearest < KERB_RADIUS) & (other < KERB_RADIUS)
            kerb = torch.where(corner, rounded, nearest)
        else:
            other, kerb = torch.full_like(nearest, 1e3), nearest
        segment = torch.stack(picks, dim=1).gather(1, street[:, None])
        return Ground(
            kerb=kerb,
            other=other,
            lateral=lateral.gather(1, segment)[:, 0],
            along=(along + self.offset).gather(1, segment)[:, 0],
            traits=self.traits[street],
        )


@dataclass(frozen=True)
class Ground:
    """Ground points against their nearest street, each (n,).

    Attributes:
        kerb: Distance outside the kerb in metres; negative on the carriageway.
        other: The same for the second-nearest street: small in and near crossings.
        lateral: Offset from the centre line, positive left.
        along: Position along the street.
        traits: (n, 8) cross-section, see ``StreetField``.
    """

    kerb: Tensor
    other: Tensor
    lateral: Tensor
    along: Tensor
    traits: Tensor


def street_field(streets: list[Street]) -> StreetField:
    """The network's tensors."""
    steps = [np.diff(s.points, axis=0) for s in streets]
    lengths = [np.linalg.norm(d, axis=1) for d in steps]
    offsets = [np.concatenate(([0.0], np.cumsum(v)[:-1])) for v in lengths]
    traits = [[s.half, s.sidewalk, s.verge, s.lanes, s.parking, s.tram, s.cycle, 0.0] for s in streets]

    def real(value: object) -> Tensor:
        return torch.from_numpy(np.asarray(value, dtype=np.float32))

    return StreetField(
        start=real(np.concatenate([s.points[:-1] for s in streets])),
        unit=real(np.concatenate([d / v[:, None] for d, v in zip(steps, lengths, strict=True)])),
        length=real(np.concatenate(lengths)),
        offset=real(np.concatenate(offsets)),
        counts=tuple(len(v) for v in lengths),
        traits=real(traits),
    )


def draw_network(rng: np.random.Generator, *, tram: bool) -> list[Street]:
    """A main street through the origin, possibly bent, and one to three side streets."""
    heading = float(rng.uniform(-np.pi, np.pi))
    reach = 190.0
    bend = float(rng.choice([0.0, rng.uniform(0.15, 0.5)], p=[0.4, 0.6])) * float(rng.choice([-1, 1]))
    corner = float(rng.uniform(-15, 30))
    local = [(-reach, 0.0), (corner, 0.0)]
    if bend:
        for k, step in ((0.5, 14.0), (1.0, reach - corner)):  # two knees make a curve
            x, y = local[-1]
            local.append((x + step * np.cos(bend * k), y + step * np.sin(bend * k)))
    else:
        local[-1] = (reach, 0.0)
    turn = np.array([[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]])
    main = _draw_street(rng, np.array(local) @ turn.T, tram=tram, minor=False)
    streets = [main]
    middle = main.length / 2
    taken: list[float] = []
    for _ in range(int(rng.integers(1, 4))):
        along = middle + float(rng.uniform(-75, 75))
        if any(abs(along - t) < 45 for t in taken) or main.turn_at(along, 28):
            continue
        taken.append(along)
        here = main.at(along, 0.0)
        angle = here.yaw + float(rng.uniform(1.25, 1.9))
        toward = np.array([np.cos(angle), np.sin(angle)])
        ends = ((-1.0, 1.0), (0.0, 1.0), (0.0, -1.0))[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
        base = np.array([here.x, here.y])
        points = np.stack([base + toward * 150 * ends[0], base + toward * 150 * ends[1]])
        streets.append(_draw_street(rng, points, tram=False, minor=True))
    return streets


def _draw_street(rng: np.random.Generator, points: np.ndarray, *, tram: bool, minor: bool) -> Street:
    parking = bool(rng.random() < 0.65)
    return Street(
        points=points,
        lanes=1 if minor or tram or rng.random() < 0.75 else 2,
        parking=parking,
        tram=tram,
        cycle=bool(not parking and rng.random() < 0.6),
        sidewalk=float(rng.uniform(2.2, 4.2)),
        verge=float(rng.choice([0.0, rng.uniform(1.2, 2.4)], p=[0.6, 0.4])),
    )
