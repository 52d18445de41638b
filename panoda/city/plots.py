"""What lies behind the sidewalks: buildings, gardens, parks, and a far ring that closes the views."""

from __future__ import annotations

import numpy as np

from panoda.city import buildings, furniture, plants
from panoda.city.looks import DrawnLook
from panoda.city.primitives import Frame, Kit
from panoda.city.streets import KERB_HEIGHT, Street, street_field

LIVELY = 95.0  # small things stand only within this distance of the middle


class Occupied:
    """Discs on the ground that are taken."""

    def __init__(self) -> None:
        self._discs = np.zeros((256, 3))
        self._count = 0

    def free(self, frame: Frame, radius: float) -> bool:
        """Whether a disc around the frame's origin touches no other."""
        discs = self._discs[: self._count]
        gap = np.hypot(discs[:, 0] - frame.x, discs[:, 1] - frame.y) - discs[:, 2]
        return bool((gap > radius).all())

    def take(self, frame: Frame, radius: float) -> None:
        """Occupy a disc."""
        if self._count == len(self._discs):
            self._discs = np.concatenate((self._discs, np.zeros_like(self._discs)))
        self._discs[self._count] = frame.x, frame.y, radius
        self._count += 1

    def take_long(self, frame: Frame, length: float, radius: float) -> None:
        """Occupy discs along the frame's x axis."""
        for x in np.linspace(-0.5, 0.5, max(1, round(length / (2 * radius)))):
            self.take(frame.shifted(float(x) * (length - 2 * radius), 0.0), radius)


class Site:
    """A street network with a kit to fill; knows what ground is taken.

    Attributes:
        things: Discs on the ground taken by small objects and vehicles.
    """

    def __init__(self, streets: list[Street], look: DrawnLook, rng: np.random.Generator) -> None:
        self.kit = Kit()
        self.streets = streets
        self.look = look
        self.rng = rng
        field = street_field(streets)
        self._start, self._unit, self._length = (
            v.numpy().astype(np.float64) for v in (field.start, field.unit, field.length)
        )
        self._first = np.concatenate(([0], np.cumsum(field.counts)[:-1]))
        self._half = np.array([s.half for s in streets])
        self._plots = Occupied()
        self.things = Occupied()

    def edges(self, points: np.ndarray) -> np.ndarray:
        """(n, S) distances of (n, 2) points outside each street's carriageway."""
        offset_x = points[:, :1] - self._start[:, 0]
        offset_y = points[:, 1:] - self._start[:, 1]
        along = offset_x * self._unit[:, 0] + offset_y * self._unit[:, 1]
        lateral = offset_y * self._unit[:, 0] - offset_x * self._unit[:, 1]
        past = along - np.minimum(np.maximum(along, 0.0), self._length)
        distance = np.sqrt(past * past + lateral * lateral)
        return np.minimum.reduceat(distance, self._first, axis=1) - self._half

    def clear_of_streets(self, frame: Frame, margin: float) -> bool:
        """Whether the frame's origin is more than ``margin`` metres off every carriageway."""
        return bool((self.edges(np.array([[frame.x, frame.y]])) > margin).all())

    def near_crossing(self, frame: Frame, index: int, span: float) -> bool:
        """Whether another street's carriageway is within ``span`` metres."""
        edges = self.edges(np.array([[frame.x, frame.y]]))[0]
        return bool((np.delete(edges, index) < span).any())

    def raised(self, frame: Frame) -> Frame:
        """The frame at the level of the sidewalks."""
        return Frame(frame.x, frame.y, KERB_HEIGHT, frame.yaw)

    def fill_plots(self) -> None:
        """Place buildings, gardens and parks along every street, and the far ring."""
        for index, street in enumerate(self.streets):
            for side in (-1, 1):
                self._plots_along(street, side, index)
        self._backdrop()

    def _plots_along(self, street: Street, side: int, index: int) -> None:
        rng = self.rng
        along = float(rng.uniform(0, 8))
        park = rng.random() < 0.25
        while along < street.length - 6:
            width = float(rng.uniform(9, 20))
            centre = along + width / 2
            along += width
            depth = float(rng.uniform(10, 15))
            setback = float(rng.choice([0.0, rng.uniform(2.5, 6.0)], p=[0.7, 0.3]))
            line = street.half + street.kerb_to_front
            frame = street.at(centre, side * (line + setback))
            turn = 0.0 if side > 0 else np.pi
            frame = self.raised(Frame(frame.x, frame.y, 0.0, frame.yaw + turn))
            if not self._plot_fits(frame, width, depth, index, line):
                continue
            green = rng.random() < (0.5 if park else 0.14)
            if green and np.hypot(frame.x, frame.y) < LIVELY + 30:
                self._green_plot(street.at(centre, side * line), turn, width, depth)
            else:
                wide = width if setback == 0 else width - 1.5
                buildings.building(self.kit, frame, self.look, rng, width=wide, depth=depth)
                if setback and np.hypot(frame.x, frame.y) < LIVELY:
                    self._front_garden(street.at(centre, side * line), turn, width, setback)
            for y in (0.3, 0.7):
                for x in np.linspace(-0.5, 0.5, max(2, round(width / 6))):
                    self._plots.take(frame.shifted(float(x) * (width - 5), y * depth), 2.6)

    def _plot_fits(self, frame: Frame, width: float, depth: float, index: int, line: float) -> bool:
        samples = [
            frame.shifted(x * width, y * depth) for x in (-0.5, -0.2, 0.2, 0.5) for y in (0.0, 0.5, 1.0)
        ]
        edges = self.edges(np.array([[s.x, s.y] for s in samples]))
        margins = np.array([s.kerb_to_front for s in self.streets])
        margins[index] -= 0.5
        if (edges < margins).any():
            return False
        inner = [frame.shifted(x * (width - 4), y * depth) for x in (-0.5, 0.0, 0.5) for y in (0.25, 0.75)]
        return all(self._plots.free(s, 1.2) for s in inner)

    def _border(self, frame: Frame, width: float) -> None:
        """A wall, fence or hedge along x."""
        kind = self.rng.choice(["wall", "fence", "hedge", "none"], p=[0.32, 0.36, 0.2, 0.12])
        build = {"wall": furniture.wall, "fence": furniture.fence, "hedge": plants.hedge}.get(str(kind))
        if build is not None:
            build(self.kit, frame, self.look, self.rng, length=width)

    def _green_plot(self, front: Frame, turn: float, width: float, depth: float) -> None:
        rng = self.rng
        base = self.raised(Frame(front.x, front.y, 0.0, front.yaw + turn))
        self._border(base.shifted(0.0, 0.3), width)
        for _ in range(int(rng.integers(2, 5))):
            spot = base.shifted(float(rng.uniform(-0.45, 0.45)) * width, float(rng.uniform(2.5, depth)))
            if self.things.free(spot, 1.0):
                plants.tree(self.kit, spot, self.look, rng)
                self.things.take(spot, 1.2)
        for _ in range(int(rng.integers(1, 5))):
            spot = base.shifted(float(rng.uniform(-0.45, 0.45)) * width, float(rng.uniform(1.5, depth)))
            plants.bush(self.kit, spot, self.look, rng)

    def _front_garden(self, front: Frame, turn: float, width: float, setback: float) -> None:
        rng = self.rng
        base = self.raised(Frame(front.x, front.y, 0.0, front.yaw + turn))
        self._border(base.shifted(0.0, 0.3), width)
        for _ in range(int(rng.integers(0, 3))):
            spot = base.shifted(float(rng.uniform(-0.4, 0.4)) * width, setback * 0.55)
            plants.bush(self.kit, spot, self.look, rng)

    def _backdrop(self) -> None:
        """Close the views: blocks and trees on a far ring."""
        rng = self.rng
        for k in range(22):
            angle = 2 * np.pi * k / 22
            far = float(rng.uniform(165, 200))
            frame = Frame(far * np.cos(angle), far * np.sin(angle), 0.0, angle - np.pi / 2)
            if rng.random() < 0.75:
                buildings.skyline(self.kit, frame, self.look, rng, width=46.0)
            for _ in range(4):
                spot = frame.shifted(float(rng.uniform(-24, 24)), float(rng.uniform(-14, -4)))
                if self.clear_of_streets(spot, 3.0):
                    plants.tree(self.kit, spot, self.look, rng)
