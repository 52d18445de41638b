"""Filling a street network with buildings, plants, furniture, traffic and people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from panoda.data.city import buildings, furniture, people, vehicles
from panoda.data.city.looks import DrawnLook
from panoda.data.city.primitives import Frame, Kit
from panoda.data.city.streets import KERB_HEIGHT, LANE_WIDTH, PARKING_WIDTH, Street, street_field

LIVELY = 95.0  # small things stand only within this distance of the middle
_TRAFFIC = ("car", "car", "car", "car", "car", "car", "cyclist", "motorcyclist", "truck", "bus")


@dataclass(frozen=True)
class Spot:
    """A free place on a lane: the frame looks along the traffic."""

    frame: Frame
    street: int


class Occupied:
    """Discs on the ground that are taken."""

    def __init__(self) -> None:
        """Start empty."""
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


class Populator:
    """Places objects street by street; its ``kit`` holds the result."""

    def __init__(
        self, streets: list[Street], look: DrawnLook, rng: np.random.Generator, *, seed: int
    ) -> None:
        """Prepare an empty kit for a network."""
        self.kit = Kit()
        self._streets = streets
        self._look = look
        self._rng = rng
        self._seed = seed
        field = street_field(streets)
        self._start, self._unit, self._length = (
            v.numpy().astype(np.float64) for v in (field.start, field.unit, field.length)
        )
        self._first = np.concatenate(([0], np.cumsum(field.counts)[:-1]))
        self._half = np.array([s.half for s in streets])
        self._plots = Occupied()
        self._things = Occupied()

    def fill(self) -> None:
        """Place everything, large before small."""
        for index, street in enumerate(self._streets):
            for side in (-1, 1):
                self._plots_along(street, side, index)
        self._backdrop()
        self._guaranteed()
        for index, street in enumerate(self._streets):
            self._driving(street, index)
            for side in (-1, 1):
                self._crossing_corner(street, side)
                self._furniture_along(street, side)
                if street.parking:
                    self._parked(street, side)
                self._walkers(street, side)

    def camera_spots(self) -> list[Spot]:
        """Free places in the lanes, nearest to the middle of the world first."""
        spots = []
        for index, street in enumerate(self._streets):
            for along in np.arange(20.0, street.length - 20.0, 5.0):
                for lane, forward in ((street.lane(0), True), (-street.lane(0), False)):
                    frame = street.at(float(along), lane)
                    frame = frame if forward else Frame(frame.x, frame.y, 0.0, frame.yaw + np.pi)
                    clear = self._things.free(frame.shifted(2.0, 0.0), 3.0)
                    clear = clear and self._things.free(frame.shifted(-3.5, 0.0), 2.0)
                    if clear and math.hypot(frame.x, frame.y) < 60:
                        spots.append(Spot(frame, index))
        return sorted(spots, key=lambda s: np.hypot(s.frame.x, s.frame.y))

    # --- the ground around a place ------------------------------------------------------------

    def _edges(self, points: np.ndarray) -> np.ndarray:
        """(n, S) distances of (n, 2) points outside each street's carriageway."""
        offset_x = points[:, :1] - self._start[:, 0]
        offset_y = points[:, 1:] - self._start[:, 1]
        along = offset_x * self._unit[:, 0] + offset_y * self._unit[:, 1]
        lateral = offset_y * self._unit[:, 0] - offset_x * self._unit[:, 1]
        past = along - np.minimum(np.maximum(along, 0.0), self._length)
        distance = np.sqrt(past * past + lateral * lateral)
        return np.minimum.reduceat(distance, self._first, axis=1) - self._half

    def _clear_of_streets(self, frame: Frame, margin: float) -> bool:
        return bool((self._edges(np.array([[frame.x, frame.y]])) > margin).all())

    def _near_crossing(self, frame: Frame, index: int, span: float) -> bool:
        """Whether another street's carriageway is within ``span`` metres."""
        edges = self._edges(np.array([[frame.x, frame.y]]))[0]
        return bool((np.delete(edges, index) < span).any())

    def _raised(self, frame: Frame) -> Frame:
        return Frame(frame.x, frame.y, KERB_HEIGHT, frame.yaw)

    # --- plots -----------------------------------------------------------------------------------

    def _plots_along(self, street: Street, side: int, index: int) -> None:
        rng = self._rng
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
            frame = self._raised(Frame(frame.x, frame.y, 0.0, frame.yaw + turn))
            if not self._plot_fits(frame, width, depth, index, line):
                continue
            green = rng.random() < (0.5 if park else 0.14)
            if green and np.hypot(frame.x, frame.y) < LIVELY + 30:
                self._green_plot(street.at(centre, side * line), turn, width, depth)
            else:
                wide = width if setback == 0 else width - 1.5
                buildings.building(self.kit, frame, self._look, rng, width=wide, depth=depth)
                if setback and np.hypot(frame.x, frame.y) < LIVELY:
                    self._front_garden(street.at(centre, side * line), turn, width, setback)
            for y in (0.3, 0.7):
                for x in np.linspace(-0.5, 0.5, max(2, round(width / 6))):
                    self._plots.take(frame.shifted(float(x) * (width - 5), y * depth), 2.6)

    def _plot_fits(self, frame: Frame, width: float, depth: float, index: int, line: float) -> bool:
        samples = [
            frame.shifted(x * width, y * depth) for x in (-0.5, -0.2, 0.2, 0.5) for y in (0.0, 0.5, 1.0)
        ]
        edges = self._edges(np.array([[s.x, s.y] for s in samples]))
        margins = np.array([s.kerb_to_front for s in self._streets])
        margins[index] -= 0.5
        if (edges < margins).any():
            return False
        inner = [frame.shifted(x * (width - 4), y * depth) for x in (-0.5, 0.0, 0.5) for y in (0.25, 0.75)]
        return all(self._plots.free(s, 1.2) for s in inner)

    def _border(self, frame: Frame, width: float) -> None:
        """A wall, fence or hedge along x."""
        kind = self._rng.choice(["wall", "fence", "hedge", "none"], p=[0.32, 0.36, 0.2, 0.12])
        build = {"wall": furniture.wall, "fence": furniture.fence, "hedge": furniture.hedge}.get(str(kind))
        if build is not None:
            build(self.kit, frame, self._look, self._rng, length=width)

    def _green_plot(self, front: Frame, turn: float, width: float, depth: float) -> None:
        rng = self._rng
        base = self._raised(Frame(front.x, front.y, 0.0, front.yaw + turn))
        self._border(base.shifted(0.0, 0.3), width)
        for _ in range(int(rng.integers(2, 5))):
            spot = base.shifted(float(rng.uniform(-0.45, 0.45)) * width, float(rng.uniform(2.5, depth)))
            if self._things.free(spot, 1.0):
                furniture.tree(self.kit, spot, self._look, rng)
                self._things.take(spot, 1.2)
        for _ in range(int(rng.integers(1, 5))):
            spot = base.shifted(float(rng.uniform(-0.45, 0.45)) * width, float(rng.uniform(1.5, depth)))
            furniture.bush(self.kit, spot, self._look, rng)

    def _front_garden(self, front: Frame, turn: float, width: float, setback: float) -> None:
        rng = self._rng
        base = self._raised(Frame(front.x, front.y, 0.0, front.yaw + turn))
        self._border(base.shifted(0.0, 0.3), width)
        for _ in range(int(rng.integers(0, 3))):
            spot = base.shifted(float(rng.uniform(-0.4, 0.4)) * width, setback * 0.55)
            furniture.bush(self.kit, spot, self._look, rng)

    def _backdrop(self) -> None:
        """Close the views: blocks and trees on a far ring."""
        rng = self._rng
        for k in range(22):
            angle = 2 * np.pi * k / 22
            far = float(rng.uniform(165, 200))
            frame = Frame(far * np.cos(angle), far * np.sin(angle), 0.0, angle - np.pi / 2)
            if rng.random() < 0.75:
                buildings.skyline(self.kit, frame, self._look, rng, width=46.0)
            for _ in range(4):
                spot = frame.shifted(float(rng.uniform(-24, 24)), float(rng.uniform(-14, -4)))
                if self._clear_of_streets(spot, 3.0):
                    furniture.tree(self.kit, spot, self._look, rng)

    # --- traffic ------------------------------------------------------------------------------------

    def _put_vehicle(self, kind: str, frame: Frame) -> None:
        build = {
            "car": vehicles.car,
            "truck": vehicles.truck,
            "bus": vehicles.bus,
            "tram": vehicles.tram,
            "motorcycle": vehicles.motorcycle,
            "bicycle": vehicles.bicycle,
            "cyclist": people.cyclist,
            "motorcyclist": people.motorcyclist,
        }[kind]
        length = build(self.kit, frame, self._look, self._rng)
        self._things.take_long(frame, length, 0.6 if length < 3 else 1.25)

    def _guaranteed(self) -> None:
        """The rare things this seed is due, on the main street near the middle."""
        rng, main, seed = self._rng, self._streets[0], self._seed
        middle = main.length / 2
        if main.tram:
            side = float(rng.choice([-1, 1]))
            frame = main.at(middle + float(rng.uniform(-30, 30)), side * 1.55)
            self._put_vehicle("tram", Frame(frame.x, frame.y, 0.0, frame.yaw + (np.pi if side > 0 else 0)))
        wanted = ("bus",) if seed % 2 == 0 else ("truck",)
        wanted += ("motorcyclist", "cyclist") if seed % 4 < 2 else ("cyclist", "motorcycle")
        for kind in wanted:
            for _ in range(8):
                side = int(rng.choice([-1, 1]))
                lateral = side * -main.lane(main.lanes - 1)
                if kind in ("cyclist", "motorcycle"):
                    lateral = side * (main.half - (0.9 if not main.parking else PARKING_WIDTH + 0.5))
                if kind == "motorcycle":
                    lateral = side * (main.half + 0.9)
                frame = main.at(middle + float(rng.uniform(-42, 42)), lateral)
                frame = Frame(frame.x, frame.y, 0.0, frame.yaw + (np.pi if side > 0 else 0))
                if kind == "motorcycle":
                    frame = self._raised(frame.shifted(0, 0, turn=float(rng.uniform(0.3, 1.2))))
                if self._things.free(frame, 6.5 if kind in ("bus", "truck") else 2.0):
                    self._put_vehicle(kind, frame)
                    break

    def _driving(self, street: Street, index: int) -> None:
        rng = self._rng
        for side in (-1, 1):
            for lane in range(street.lanes):
                along = float(rng.uniform(0, 30))
                while along < street.length:
                    kind = _TRAFFIC[int(rng.integers(len(_TRAFFIC)))]
                    if kind in ("truck", "bus") and rng.random() < 0.6:
                        kind = "car"
                    lateral = side * (abs(street.lane(lane)) + float(rng.uniform(-0.2, 0.2)))
                    if kind == "cyclist":
                        lateral = side * (street.half - (PARKING_WIDTH + 0.5 if street.parking else 0.9))
                    frame = street.at(along, lateral)
                    along += float(rng.uniform(10, 36))
                    frame = Frame(frame.x, frame.y, 0.0, frame.yaw + (np.pi if side > 0 else 0))
                    inside = self._near_crossing(frame, index, 1.0)
                    room = 6.5 if kind in ("truck", "bus") else 3.0
                    near = np.hypot(frame.x, frame.y) < LIVELY
                    if near and not inside and self._things.free(frame, room):
                        self._put_vehicle(kind, frame)

    def _parked(self, street: Street, side: int) -> None:
        rng = self._rng
        lateral = side * (street.half - PARKING_WIDTH / 2 + 0.05)
        density = float(rng.uniform(0.45, 0.95))
        index = self._streets.index(street)
        along = float(rng.uniform(4, 8))
        while along < street.length - 4:
            frame = street.at(along, lateral)
            along += float(rng.uniform(5.4, 6.4))
            if rng.random() > density or np.hypot(frame.x, frame.y) > LIVELY:
                continue
            frame = Frame(frame.x, frame.y, 0.0, frame.yaw + (np.pi if side > 0 else 0.0))
            if self._near_crossing(frame, index, 8.0) or not self._things.free(frame, 2.2):
                continue
            kind = str(rng.choice(["car", "truck", "motorcycle"], p=[0.94, 0.015, 0.045]))
            self._put_vehicle(kind, frame)

    # --- sidewalks ----------------------------------------------------------------------------------

    def _furniture_along(self, street: Street, side: int) -> None:
        """Trees, lamps, signs, bollards and parked bicycles in the strip behind the kerb."""
        rng, index = self._rng, self._streets.index(street)
        strip = street.half + (street.verge / 2 if street.verge else 0.55)
        trees = rng.random() < 0.7
        spacing = float(rng.uniform(6.5, 13))
        for k, along in enumerate(np.arange(6.0, street.length - 4, 3.2)):
            frame = street.at(float(along + rng.uniform(-0.4, 0.4)), side * strip)
            frame = self._raised(Frame(frame.x, frame.y, 0.0, frame.yaw + (np.pi if side > 0 else 0.0)))
            if np.hypot(frame.x, frame.y) > LIVELY or not self._clear_of_streets(frame, 0.3):
                continue
            if not self._things.free(frame, 0.45):
                continue
            crossing = self._near_crossing(frame, index, 4.5)
            draw = rng.random()
            if k % 8 == 0:
                furniture.street_lamp(self.kit, frame, self._look, rng)
            elif trees and not crossing and k % max(2, round(spacing / 3.2)) == 1:
                furniture.tree(self.kit, frame, self._look, rng)
            elif draw < 0.10:
                furniture.traffic_sign(self.kit, frame, rng)
            elif draw < 0.115 and not crossing:
                furniture.direction_board(self.kit, frame, rng)
            elif draw < 0.2:
                furniture.bollard(self.kit, frame)
            elif draw < 0.28 and not crossing:
                self._bicycles(frame, int(rng.integers(1, 4)))
            elif draw < 0.30 and not crossing:
                turned = frame.shifted(0, 0, turn=float(rng.uniform(0.3, 1.2)))
                vehicles.motorcycle(self.kit, turned, self._look, rng)
            else:
                continue
            self._things.take(frame, 0.35)

    def _bicycles(self, frame: Frame, count: int) -> None:
        for k in range(count):
            spot = frame.shifted(0.55 * k, 0.0, turn=np.pi / 2 + float(self._rng.uniform(-0.15, 0.15)))
            vehicles.bicycle(self.kit, spot.shifted(-0.4, 0), self._look, self._rng)

    def _crossing_corner(self, street: Street, side: int) -> None:
        """Signals where this street's right kerb meets another street, for both directions."""
        rng, index = self._rng, self._streets.index(street)
        placed = -1e9
        signalled = rng.random() < 0.5  # a signalled footway where no street crosses
        for along in np.arange(5.0, street.length - 5, 1.0):
            ahead = along if side < 0 else street.length - along
            frame = street.at(float(ahead), side * (street.half + 0.6))
            frame = self._raised(Frame(frame.x, frame.y, 0.0, frame.yaw + (np.pi if side > 0 else 0.0)))
            if np.hypot(frame.x, frame.y) > LIVELY or along - placed < 22:
                continue
            edges = np.delete(self._edges(np.array([[frame.x, frame.y]]))[0], index)
            corner = 3.6 < edges.min(initial=1e3) < 5.2
            footway = signalled and edges.min(initial=1e3) > 25 and index == 0 and ahead % 40 < 1
            if (corner or footway) and self._things.free(frame, 0.4):
                arm = float(rng.choice([0.0, street.half * 0.6]))
                furniture.traffic_light(self.kit, frame, rng, arm=arm)
                self._things.take(frame, 0.4)
                placed = along

    def _walkers(self, street: Street, side: int) -> None:
        rng = self._rng
        inner, outer = street.half + street.verge + 0.6, street.half + street.kerb_to_front - 0.4
        gap = float(rng.uniform(3.5, 11))
        along = float(rng.uniform(0, 10))
        while along < street.length:
            frame = street.at(along, side * float(rng.uniform(inner, outer)))
            along += float(rng.exponential(gap)) + 0.5
            facing = float(rng.choice([0.0, np.pi])) + float(rng.normal(0, 0.25))
            on_road = rng.random() < 0.05
            if on_road:
                frame = street.at(along, side * float(rng.uniform(0.5, street.half)))
                facing += np.pi / 2
            if np.hypot(frame.x, frame.y) > LIVELY - 20:
                continue
            spot = Frame(frame.x, frame.y, 0.0 if on_road else KERB_HEIGHT, frame.yaw + facing)
            clear = on_road or self._clear_of_streets(spot, 0.25)
            if clear and self._things.free(spot, 0.35):
                people.pedestrian(self.kit, spot, self._look, rng)
                self._things.take(spot, 0.3)


__all__ = ["LANE_WIDTH", "Occupied", "Populator", "Spot"]
