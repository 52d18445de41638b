"""Traffic, street furniture and people of a site."""

from __future__ import annotations

import math

import numpy as np

from panoda.city import furniture, people, plants, vehicles
from panoda.city.plots import LIVELY, Site
from panoda.city.primitives import Frame
from panoda.city.streets import KERB_HEIGHT, PARKING_WIDTH, Street

_TRAFFIC = ("car", "car", "car", "car", "car", "car", "cyclist", "motorcyclist", "truck", "bus")
_BUILDERS = {
    "car": vehicles.car,
    "truck": vehicles.truck,
    "bus": vehicles.bus,
    "tram": vehicles.tram,
    "motorcycle": vehicles.motorcycle,
    "cyclist": people.cyclist,
    "motorcyclist": people.motorcyclist,
}


class Populator:
    """Places what moves or stands in the streets of a site whose plots are filled."""

    def __init__(self, site: Site, *, seed: int) -> None:
        self._site = site
        self._streets, self._look, self._rng = site.streets, site.look, site.rng
        self._seed = seed

    def fill(self) -> None:
        """Place everything, large before small."""
        self._guaranteed()
        for index, street in enumerate(self._streets):
            self._driving(street, index)
            for side in (-1, 1):
                self._crossing_corner(street, side)
                self._furniture_along(street, side)
                if street.parking:
                    self._parked(street, side)
                self._walkers(street, side)

    def camera_spots(self) -> list[Frame]:
        """Free places in the lanes, looking along the traffic, nearest to the middle of the world first.

        A crowded world is asked again with less clearance, so that every seed has a place.
        """
        for clearance, reach in ((1.0, 60.0), (0.6, 60.0), (0.3, 120.0), (0.0, math.inf)):
            spots = [s for s in self._lane_spots(reach) if self._clear(s, clearance)]
            if spots:
                return sorted(spots, key=lambda s: np.hypot(s.x, s.y))
        return []

    def _lane_spots(self, reach: float) -> list[Frame]:
        """Places every 5 m on the inner lanes, within ``reach`` metres of the middle."""
        spots = []
        for street in self._streets:
            for along in np.arange(20.0, street.length - 20.0, 5.0):
                for lane, forward in ((street.lane(0), True), (-street.lane(0), False)):
                    frame = street.at(float(along), lane)
                    frame = frame if forward else Frame(frame.x, frame.y, 0.0, frame.yaw + np.pi)
                    if math.hypot(frame.x, frame.y) < reach:
                        spots.append(frame)
        return spots

    def _clear(self, frame: Frame, clearance: float) -> bool:
        """Nothing stands in front of or behind a camera; ``clearance`` 1 = as much room as is wanted."""
        things = self._site.things
        if clearance == 0:
            return True
        return things.free(frame.shifted(2.0, 0.0), 3.0 * clearance) and things.free(
            frame.shifted(-3.5, 0.0), 2.0 * clearance
        )

    # --- traffic ------------------------------------------------------------------------------------

    def _put_vehicle(self, kind: str, frame: Frame) -> None:
        length = _BUILDERS[kind](self._site.kit, frame, self._look, self._rng)
        self._site.things.take_long(frame, length, 0.6 if length < 3 else 1.25)

    def _guaranteed(self) -> None:
        """The rare things this seed is due, on the main street near the middle."""
        rng, main, seed = self._rng, self._streets[0], self._seed
        if main.tram:
            side = int(rng.choice([-1, 1]))
            along = main.length / 2 + float(rng.uniform(-30, 30))
            self._put_vehicle("tram", self._on(main, along, side * 1.55, side))
        large = "bus" if seed // 2 % 2 == 0 else "truck"  # independent of looks that alternate
        for kind in (large, "cyclist", "motorcyclist" if seed // 3 % 2 == 0 else "motorcycle"):
            self._put_somewhere(kind, main)

    def _put_somewhere(self, kind: str, main: Street) -> None:
        """Try a few places for one rare thing."""
        rng = self._rng
        offset = {
            "cyclist": main.half - (PARKING_WIDTH + 0.5 if main.parking else 0.9),
            "motorcycle": main.half + 0.9,  # parked on the sidewalk
        }.get(kind, abs(main.lane(main.lanes - 1)))
        for _ in range(8):
            side = int(rng.choice([-1, 1]))
            frame = self._on(main, main.length / 2 + float(rng.uniform(-42, 42)), side * offset, side)
            if kind == "motorcycle":
                frame = self._site.raised(frame.shifted(0, 0, turn=float(rng.uniform(0.3, 1.2))))
            if self._site.things.free(frame, 6.5 if kind in ("bus", "truck") else 2.0):
                self._put_vehicle(kind, frame)
                return

    @staticmethod
    def _on(street: Street, along: float, lateral: float, side: int) -> Frame:
        """A frame facing the traffic of its side of the street."""
        frame = street.at(along, lateral)
        return Frame(frame.x, frame.y, 0.0, frame.yaw + (np.pi if side > 0 else 0.0))

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
                    frame = self._on(street, along, lateral, side)
                    along += float(rng.uniform(10, 36))
                    inside = self._site.near_crossing(frame, index, 1.0)
                    room = 6.5 if kind in ("truck", "bus") else 3.0
                    near = np.hypot(frame.x, frame.y) < LIVELY
                    if near and not inside and self._site.things.free(frame, room):
                        self._put_vehicle(kind, frame)

    def _parked(self, street: Street, side: int) -> None:
        rng = self._rng
        lateral = side * (street.half - PARKING_WIDTH / 2 + 0.05)
        density = float(rng.uniform(0.45, 0.95))
        index = self._streets.index(street)
        along = float(rng.uniform(4, 8))
        while along < street.length - 4:
            frame = self._on(street, along, lateral, side)
            along += float(rng.uniform(5.4, 6.4))
            if rng.random() > density or np.hypot(frame.x, frame.y) > LIVELY:
                continue
            if self._site.near_crossing(frame, index, 8.0) or not self._site.things.free(frame, 2.2):
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
            frame = self._on(street, float(along + rng.uniform(-0.4, 0.4)), side * strip, side)
            frame = self._site.raised(frame)
            if np.hypot(frame.x, frame.y) > LIVELY or not self._site.clear_of_streets(frame, 0.3):
                continue
            if not self._site.things.free(frame, 0.45):
                continue
            crossing = self._site.near_crossing(frame, index, 4.5)
            draw = rng.random()
            if k % 8 == 0:
                furniture.street_lamp(self._site.kit, frame, self._look, rng)
            elif trees and not crossing and k % max(2, round(spacing / 3.2)) == 1:
                plants.tree(self._site.kit, frame, self._look, rng)
            elif draw < 0.10:
                furniture.traffic_sign(self._site.kit, frame, rng)
            elif draw < 0.115 and not crossing:
                furniture.direction_board(self._site.kit, frame, rng)
            elif draw < 0.2:
                furniture.bollard(self._site.kit, frame)
            elif draw < 0.28 and not crossing:
                self._bicycles(frame, int(rng.integers(1, 4)))
            elif draw < 0.30 and not crossing:
                turned = frame.shifted(0, 0, turn=float(rng.uniform(0.3, 1.2)))
                vehicles.motorcycle(self._site.kit, turned, self._look, rng)
            else:
                continue
            self._site.things.take(frame, 0.35)

    def _bicycles(self, frame: Frame, count: int) -> None:
        for k in range(count):
            spot = frame.shifted(0.55 * k, 0.0, turn=np.pi / 2 + float(self._rng.uniform(-0.15, 0.15)))
            vehicles.bicycle(self._site.kit, spot.shifted(-0.4, 0), self._look, self._rng)

    def _crossing_corner(self, street: Street, side: int) -> None:
        """Signals where this street's right kerb meets another street, for both directions."""
        rng, index = self._rng, self._streets.index(street)
        placed = -1e9
        signalled = rng.random() < 0.5  # a signalled footway where no street crosses
        for along in np.arange(5.0, street.length - 5, 1.0):
            ahead = along if side < 0 else street.length - along
            frame = self._site.raised(self._on(street, float(ahead), side * (street.half + 0.6), side))
            if np.hypot(frame.x, frame.y) > LIVELY or along - placed < 22:
                continue
            edges = np.delete(self._site.edges(np.array([[frame.x, frame.y]]))[0], index)
            corner = 3.6 < edges.min(initial=1e3) < 5.2
            footway = signalled and edges.min(initial=1e3) > 25 and index == 0 and ahead % 40 < 1
            if (corner or footway) and self._site.things.free(frame, 0.4):
                arm = float(rng.choice([0.0, street.half * 0.6]))
                furniture.traffic_light(self._site.kit, frame, rng, arm=arm)
                self._site.things.take(frame, 0.4)
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
            clear = on_road or self._site.clear_of_streets(spot, 0.25)
            if clear and self._site.things.free(spot, 0.35):
                people.pedestrian(self._site.kit, spot, self._look, rng)
                self._site.things.take(spot, 0.3)
