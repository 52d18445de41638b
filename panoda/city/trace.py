"""Nearest hits of many rays with many primitives, batched in torch.

Rays come in small groups (the pixels of an image tile, the cells of a shadow map). A group and a
primitive are tested against each other first by bounding intervals, then ray by ray; the
survivors are (group, primitive) pairs whose intersections are computed in a few large tensor
operations. Nothing depends on the order of threads, so equal input gives equal output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from panoda.city.primitives import Kind, Scene

# Elements of one intersection batch: small enough for a CPU's second-level cache.
BATCH = 1 << 17
_MISS = float("inf")
_BLOCK = 8  # consecutive groups that are culled together first


@dataclass(frozen=True)
class AngularBounds:
    """What a camera position sees of each primitive.

    Attributes:
        azimuth: (4, N) factors of the azimuth test, see ``_azimuth_factors``.
        low: (N,) lowest elevation in radians.
        high: (N,) highest elevation in radians.
    """

    azimuth: Tensor
    low: Tensor
    high: Tensor


def angular_bounds(scene: Scene, origin: Tensor) -> AngularBounds:
    """Azimuth and elevation intervals of all primitives seen from ``origin`` (3,)."""
    offset = scene.centre - origin
    cos, sin = scene.footprint[:, 2], scene.footprint[:, 3]
    along = offset[:, 0] * cos + offset[:, 1] * sin
    across = offset[:, 1] * cos - offset[:, 0] * sin
    length, width = scene.footprint[:, 0], scene.footprint[:, 1]
    gap = torch.hypot((along.abs() - length).clamp_min(0), (across.abs() - width).clamp_min(0))
    reach = torch.hypot(along.abs() + length, across.abs() + width)
    middle = torch.atan2(across, along)
    signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
    turns = [torch.atan2(across + j * width, along + i * length) - middle for i, j in signs]
    half = _turn(torch.stack(turns)).abs().amax(0)
    inside = gap < 1e-3
    azimuth = middle + torch.atan2(sin, cos)
    low, high = scene.z_range[:, 0] - origin[2], scene.z_range[:, 1] - origin[2]
    gap = gap.clamp_min(1e-3)
    low = torch.atan2(low, torch.where(low < 0, gap, reach))
    high = torch.atan2(high, torch.where(high > 0, gap, reach))
    return AngularBounds(_azimuth_factors(azimuth, half, everything=inside).T, low, high)


def _azimuth_factors(middle: Tensor, half: Tensor, *, everything: Tensor) -> Tensor:
    """(N, 4) rows whose product is cos(difference) - cos(sum of half widths); >= 0 means overlap."""
    rows = torch.stack((middle.cos(), middle.sin(), half.cos(), half.sin()), dim=1)
    return rows.masked_fill(everything[:, None], 0.0)


def visible_pairs(bounds: AngularBounds, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Which groups of rays (G, R, 3) may meet which primitives: group and primitive index, (P,) each."""
    azimuth = torch.atan2(rays[..., 1], rays[..., 0])
    elevation = torch.asin(rays[..., 2].clamp(-1, 1))
    mean = rays.mean(dim=1)
    middle = torch.atan2(mean[:, 1], mean[:, 0])
    half = _turn(azimuth - middle[:, None]).abs().amax(dim=1) + 1e-4
    low, high = elevation.amin(dim=1) - 1e-4, elevation.amax(dim=1) + 1e-4
    blocks = -(-len(rays) // _BLOCK)
    fine = torch.arange(blocks * _BLOCK).clamp(max=len(rays) - 1).view(blocks, _BLOCK)
    centre = middle[fine[:, _BLOCK // 2]]
    reach = (_turn(middle[fine] - centre[:, None]).abs() + half[fine]).amax(dim=1)
    coarse = _azimuth_factors(centre, reach, everything=reach > 1.5) * _flip(rays)
    over = coarse @ bounds.azimuth >= -1e-6
    over &= low[fine].amin(1)[:, None] <= bounds.high
    over &= high[fine].amax(1)[:, None] >= bounds.low
    block, index = over.nonzero(as_tuple=True)
    group = (block[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
    index = index[:, None].expand(-1, _BLOCK).flatten()
    factors = _azimuth_factors(middle, half, everything=half > 1.5) * _flip(rays)
    group, index = (v[group < len(rays)] for v in (group, index))
    keep = (low[group] <= bounds.high[index]) & (high[group] >= bounds.low[index])
    group, index = group[keep], index[keep]
    side = (factors[group] * bounds.azimuth.T[index]).sum(1) >= -1e-6
    return group[side], index[side]


def _turn(angle: Tensor) -> Tensor:
    """Angles brought to [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _flip(like: Tensor) -> Tensor:
    return torch.tensor([1.0, 1.0, -1.0, 1.0])


def trace(
    scene: Scene, origin: Tensor, rays: Tensor, pairs: tuple[Tensor, Tensor], *, pixel_angle: float
) -> tuple[Tensor, Tensor]:
    """First hit of every ray.

    Args:
        rays: (G, R, 3) unit world directions.
        pairs: Group and primitive of every pair worth testing, (P,) each.
        pixel_angle: Angle between neighbouring pixels in radians; gaps finer than a pixel close.

    Returns:
        Distance (G, R), infinite where nothing is hit, and primitive (G, R), -1 where nothing.
    """
    groups, size = rays.shape[:2]
    # Distance and index share one sortable number: the distance's bits above the index's.
    nothing = _pack(torch.full((), _MISS), torch.zeros((), dtype=torch.int64))
    best = nothing.expand(groups, size).contiguous()
    start = 0
    local_origin = torch.einsum("nij,nj->ni", scene.to_local, origin - scene.centre)
    for kind, end in zip(Kind, scene.kind_ends, strict=True):
        of_kind = (pairs[1] >= start) & (pairs[1] < end)
        group, index = pairs[0][of_kind], pairs[1][of_kind]
        start = end
        step = max(1, BATCH // size)
        for g, n in zip(group.split(step), index.split(step), strict=True):
            moving = to_unit_shapes(scene.to_local[n], rays[g])
            fixed = local_origin[n].T[:, :, None]
            near, far = intersect(kind, fixed, moving, scene, n, pixel_angle=pixel_angle)
            hit = torch.where((near < far) & (near > 1e-3), near, _MISS)
            best.scatter_reduce_(0, g[:, None].expand(-1, size), _pack(hit, n[:, None]), "amin")
    bits = best.view(torch.int64)
    distance = (bits >> 32).to(torch.int32).view(torch.float32)
    return distance, torch.where(distance.isinf(), -1, bits & 0xFFFFFFFF)


def _pack(distance: Tensor, index: Tensor) -> Tensor:
    bits = distance.contiguous().view(torch.int32).to(torch.int64)
    return ((bits << 32) | index).view(torch.float64)


def to_unit_shapes(matrix: Tensor, vectors: Tensor) -> Tensor:
    """(P, 3, 3) matrices on (P, R, 3) vectors -> (3, P, R)."""
    x, y, z = vectors.unbind(-1)
    m = matrix[..., None]
    return torch.stack([m[:, i, 0] * x + m[:, i, 1] * y + m[:, i, 2] * z for i in range(3)])


def intersect(
    kind: Kind, origin: Tensor, direction: Tensor, scene: Scene, index: Tensor, *, pixel_angle: float
) -> tuple[Tensor, Tensor]:
    """Entry and exit distances in unit-shape coordinates.

    Args:
        kind: The one shape of all P primitives.
        origin: (3, P, R) or (3, P, 1) local ray origins.
        direction: (3, P, R) or (3, P, 1) local directions, not normalised: distances stay metric.
        pixel_angle: See ``trace``.

    Returns:
        near and far, each (P, R); near >= far where the ray misses.
    """
    if kind == Kind.WEDGE:
        return _wedge(origin, direction, scene.shape[index])
    if kind == Kind.BALL:
        return _ball(origin, direction, scene.shape[index])
    if kind == Kind.ROD:
        return _rod(origin, direction)
    if kind == Kind.RING:
        return _ring(origin, direction, scene.shape[index])
    near, far = _slabs(origin, direction)
    if kind == Kind.PICKET:
        far = _pickets(near, far, origin, direction, scene, index, pixel_angle)
    return near, far


def _safe(value: Tensor) -> Tensor:
    """Keep divisors away from zero without changing their sign."""
    return torch.where(value.abs() < 1e-9, torch.full_like(value, 1e-9), value)


def _slabs(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / _safe(d)
    middle, half = -o * inverse, inverse.abs()
    return (middle - half).amax(0), (middle + half).amin(0)


def _wedge(o: Tensor, d: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Half spaces a . p <= b; the sides lean in by ``shape`` times the height share (z + 1) / 2."""
    lean = 0.5 * shape[:, :, None]
    near, far = _slabs(o[2:], d[2:])
    for axis, sign, k in (
        (0, 1.0, lean[:, 0]),
        (0, -1.0, lean[:, 1]),
        (1, 1.0, lean[:, 2]),
        (1, -1.0, lean[:, 2]),
    ):
        gap = 1.0 - sign * o[axis] - k * (o[2] + 1.0)
        speed = _safe(sign * d[axis] + k * d[2])
        t = gap / speed
        near = torch.where(speed < 0, torch.maximum(near, t), near)
        far = torch.where(speed > 0, torch.minimum(far, t), far)
    return near, far


def _ball(o: Tensor, d: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c = (d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1.0
    closest = -b / a
    room = b * b / a - c  # 1 at a central hit, 0 at the silhouette
    ragged, frequency = shape[:, :1], shape[:, 1:2]
    p = (o + closest * d) * frequency
    wave = (p[0] + 1.7 * p[1]).sin() * (p[1] - 1.3 * p[2]).sin() + (2.3 * p[2] + p[0]).sin() * 0.6
    room = room - ragged * (0.8 + wave)
    half = room.clamp_min(0).div(a).sqrt()
    return torch.where(room > 0, closest - half, _MISS), closest + half


def _rod(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    near, far = _slabs(o[2:], d[2:])
    a = _safe(d[0] * d[0] + d[1] * d[1])
    b = o[0] * d[0] + o[1] * d[1]
    room = b * b - a * (o[0] * o[0] + o[1] * o[1] - 1.0)
    half = room.clamp_min(0).sqrt() / a
    near, far = torch.maximum(near, -b / a - half), torch.minimum(far, -b / a + half)
    return torch.where(room > 0, near, _MISS), far


def _ring(o: Tensor, d: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    t = -o[1] / _safe(d[1])
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    radius2 = x * x + z * z
    spoke = (torch.atan2(z, x) * 5.0).cos() > 0.9
    solid = (radius2 < 1.0) & ((radius2 > shape[:, :1] ** 2) | spoke)
    return torch.where(solid, t, _MISS), t + 0.02


def _pickets(
    near: Tensor, far: Tensor, o: Tensor, d: Tensor, scene: Scene, index: Tensor, pixel_angle: float
) -> Tensor:
    half = scene.half[index]
    period, fill = scene.shape[index, :1], scene.shape[index, 1:2]
    x = (o[0] + near * d[0]) * half[:, :1]
    height = (o[2] + near * d[2] + 1.0) * 0.5
    solid = torch.remainder(x, period) < fill * period
    solid |= ((height - 0.2).abs() < 0.05) | ((height - 0.85).abs() < 0.05)
    solid |= near * pixel_angle > 0.4 * period
    return torch.where(solid, far, -_MISS)
