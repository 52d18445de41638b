"""Solid primitives of a city and the kit that collects them.

Convention:
    World axes: x east, y north, z up, metres. Yaw turns counter-clockwise seen from above; an
    object's own x axis points forward, y left, z up. Each primitive fills the unit shape
    [-1, 1]^3 of its local frame: ``local = to_local @ (point - centre)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Vec3 = tuple[float, float, float]
Vec4 = tuple[float, float, float, float]


class Kind(IntEnum):
    """Shapes; ``shape`` parameters in brackets."""

    BOX = 0
    WEDGE = 1  # box whose sides lean in towards the top: [front, back, sides] share of the half size
    BALL = 2  # ellipsoid: [raggedness of the silhouette, its frequency]
    ROD = 3  # elliptic cylinder along local z
    RING = 4  # flat spoked ring in the local x-z plane: [inner radius share]
    PICKET = 5  # thin box with gaps along x: [period in metres, filled share]


class Material(IntEnum):
    """How a surface looks; see ``panoda.city.textures``."""

    PLAIN = 0
    FACADE = 1
    ROOF = 2
    PAINT = 3
    CABIN = 4
    WHEEL = 5
    COACH = 6
    CARGO = 7
    FOLIAGE = 8
    BARK = 9
    MASONRY = 10
    PALING = 11
    LAMP_HEAD = 12
    SIGN = 13
    METAL = 14
    CLOTH = 15
    GLOW = 16


@dataclass(frozen=True)
class Frame:
    """Where an object stands: its origin in the world and its yaw in radians."""

    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    def shifted(self, forward: float, left: float, up: float = 0.0, *, turn: float = 0.0) -> Frame:
        """The frame moved along its own axes and turned by ``turn`` radians."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return Frame(
            self.x + c * forward - s * left, self.y + s * forward + c * left, self.z + up, self.yaw + turn
        )


@dataclass(frozen=True)
class Scene:
    """N primitives sorted by kind, as tensors.

    Attributes:
        kind_ends: End index of each kind in the sorted order.
        centre: (N, 3) metres.
        half: (N, 3) half sizes in metres.
        rotation: (N, 3, 3) local axes to world axes.
        to_local: (N, 3, 3) world offsets to the unit shape.
        footprint: (N, 4) half length, half width of the bounding rectangle on the ground in the
            primitive's yaw frame, and the yaw's cosine and sine.
        z_range: (N, 2) lowest and highest point.
        shape: (N, 4) shape parameters, see ``Kind``.
        label: (N,) train ids.
        material: (N,) ``Material``.
        colour: (N, 3) linear RGB albedo.
        accent: (N, 3) second colour.
        tex: (N, 4) texture parameters.
        salt: (N,) integers that make textures differ.
    """

    kind_ends: tuple[int, ...]
    centre: Tensor
    half: Tensor
    rotation: Tensor
    to_local: Tensor
    footprint: Tensor
    z_range: Tensor
    shape: Tensor
    label: Tensor
    material: Tensor
    colour: Tensor
    accent: Tensor
    tex: Tensor
    salt: Tensor

    def __len__(self) -> int:
        return self.centre.shape[0]

    def corners(self) -> Tensor:
        """(N, 8, 3) corners of the bounding boxes."""
        signs = torch.tensor([[i, j, k] for i in (-1.0, 1.0) for j in (-1.0, 1.0) for k in (-1.0, 1.0)])
        local = self.half[:, None] * signs.to(self.half)
        return torch.einsum("nij,nkj->nki", self.rotation, local) + self.centre[:, None]


class Part(NamedTuple):
    """One primitive of an object.

    Attributes:
        at: Centre in the object's axes, metres.
        size: Full extents along the primitive's own axes, metres.
        colour: Linear RGB albedo.
        accent: Second colour of the material.
        shape: Shape parameters, see ``Kind``.
        tex: Texture parameters of the material.
        spin: Rotation inside the object about x, then y, then z, in radians.
    """

    kind: Kind
    at: Vec3
    size: Vec3
    colour: Vec3
    material: Material = Material.PLAIN
    accent: Vec3 = (0.5, 0.5, 0.5)
    shape: Vec4 = (0.0, 0.0, 0.0, 0.0)
    tex: Vec4 = (0.0, 0.0, 0.0, 0.0)
    spin: Vec3 = (0.0, 0.0, 0.0)


class Kit:
    """Collects primitives; ``scene()`` turns them into tensors."""

    def __init__(self) -> None:
        self._numbers: list[tuple[float, ...]] = []

    def add(self, frame: Frame, label: int, *parts: Part) -> None:
        """Add the parts of an object that stands on ``frame`` and has the train id ``label``."""
        pose = (frame.x, frame.y, frame.z, frame.yaw)
        for p in parts:
            self._numbers.append(
                (
                    p.kind,
                    label,
                    p.material,
                    *pose,
                    *p.at,
                    *p.size,
                    *p.spin,
                    *p.colour,
                    *p.accent,
                    *p.shape,
                    *p.tex,
                )
            )

    def scene(self) -> Scene:
        """All primitives as tensors, sorted by kind (stable, so the order is reproducible)."""
        table = np.asarray(self._numbers, dtype=np.float64)
        salt = np.arange(len(table), dtype=np.int64)
        order = np.argsort(table[:, 0], kind="stable")
        table, salt = table[order], salt[order]
        ends = tuple(int(np.searchsorted(table[:, 0], k, side="right")) for k in Kind)
        half = table[:, 10:13] / 2
        centre, rotation, footprint, z_range = _placements(
            table[:, 3:7], table[:, 7:10], half, table[:, 13:16]
        )
        return Scene(
            kind_ends=ends,
            centre=_real(centre),
            half=_real(half),
            rotation=_real(rotation),
            to_local=_real(np.swapaxes(rotation, 1, 2) / half[:, :, None]),
            footprint=_real(footprint),
            z_range=_real(z_range),
            shape=_real(table[:, 22:26]),
            label=torch.from_numpy(table[:, 1].astype(np.int64)),
            material=torch.from_numpy(table[:, 2].astype(np.int64)),
            colour=_real(table[:, 16:19]),
            accent=_real(table[:, 19:22]),
            tex=_real(table[:, 26:30]),
            salt=torch.from_numpy(salt),
        )


def _real(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))


def _placements(
    pose: np.ndarray, at: np.ndarray, half: np.ndarray, spin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres (N, 3), rotations (N, 3, 3), footprints (N, 4) and height ranges (N, 2)."""
    yaw = pose[:, 3]
    cos, sin = np.cos(yaw), np.sin(yaw)
    x = pose[:, 0] + at[:, 0] * cos - at[:, 1] * sin
    y = pose[:, 1] + at[:, 0] * sin + at[:, 1] * cos
    centre = np.stack((x, y, pose[:, 2] + at[:, 2]), axis=1)
    heading = yaw + spin[:, 2]
    tilt = _rotations(spin[:, 0], spin[:, 1])
    reach = (np.abs(tilt) @ half[:, :, None])[..., 0]
    footprint = np.stack((reach[:, 0], reach[:, 1], np.cos(heading), np.sin(heading)), axis=1)
    z_range = centre[:, 2:] + reach[:, 2:] * np.array([-1.0, 1.0])
    return centre, _rotations_z(heading) @ tilt, footprint, z_range


def _rotations_z(angle: np.ndarray) -> np.ndarray:
    c, s, o, i = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack((c, -s, o, s, c, o, o, o, i), axis=1).reshape(-1, 3, 3)


def _rotations(about_x: np.ndarray, about_y: np.ndarray) -> np.ndarray:
    """R_y(about_y) R_x(about_x)."""
    o, i = np.zeros_like(about_x), np.ones_like(about_x)
    c, s = np.cos(about_x), np.sin(about_x)
    rx = np.stack((i, o, o, o, c, -s, o, s, c), axis=1).reshape(-1, 3, 3)
    c, s = np.cos(about_y), np.sin(about_y)
    ry = np.stack((c, o, s, o, i, o, -s, o, c), axis=1).reshape(-1, 3, 3)
    return ry @ rx
