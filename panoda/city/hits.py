"""Hit points on primitives with everything their textures need."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from panoda.city.primitives import Kind, Scene


@dataclass(frozen=True)
class Hits:
    """n hit points.

    Attributes:
        point: (n, 3) world position.
        normal: (n, 3) unit world normal, towards the viewer.
        local: (n, 3) position in the unit shape.
        face: (n,) axis of the local face that was hit: 0 ends, 1 sides, 2 top, bottom or cap.
        sign: (n,) -1 or 1, which of the two faces.
        u: (n,) metres across the face, 0 in the middle.
        v: (n,) metres up the face from the primitive's lower edge.
        w: (n,) metres along a roof's slope.
        fu: (n,) footprint of the pixel along u in metres.
        fv: (n,) footprint along v.
        half_u: (n,) half extent of the face along u.
        half_v: (n,) half extent along v.
        sign_plane: (n, 2) leftward and upward coordinate in [-1, 1] of thin plates facing x.
        material: (n,) ``Material``.
        colour: (n, 3) linear albedo.
        accent: (n, 3) second colour.
        tex: (n, 4) texture parameters.
        salt: (n,) int64.
    """

    point: Tensor
    normal: Tensor
    local: Tensor
    face: Tensor
    sign: Tensor
    u: Tensor
    v: Tensor
    w: Tensor
    fu: Tensor
    fv: Tensor
    half_u: Tensor
    half_v: Tensor
    sign_plane: Tensor
    material: Tensor
    colour: Tensor
    accent: Tensor
    tex: Tensor
    salt: Tensor

    def __len__(self) -> int:
        return self.u.shape[0]

    def take(self, index: Tensor) -> Hits:
        """A subset."""
        return Hits(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Surface:
    """What a painter returns.

    Attributes:
        albedo: (n, 3) linear reflectance.
        gloss: (n,) share of mirror-like reflection at normal incidence.
        glow: (n, 3) emitted radiance.
        soft: (n,) share of light that ignores the surface's direction (leaves).
    """

    albedo: Tensor
    gloss: Tensor
    glow: Tensor
    soft: Tensor | None = None

    def __post_init__(self) -> None:
        if self.soft is None:
            object.__setattr__(self, "soft", torch.zeros_like(self.gloss))


def plain(albedo: Tensor, *, gloss: float = 0.0, soft: float = 0.0) -> Surface:
    """A surface of constant gloss that does not glow."""
    level = albedo.new_full((albedo.shape[0],), gloss)
    return Surface(albedo, level, torch.zeros_like(albedo), torch.full_like(level, soft))


def uniform(hits: Hits, r: float, g: float, b: float) -> Tensor:
    """One colour for all hits, (n, 3)."""
    return torch.tensor([r, g, b]).expand(len(hits), 3)


def mix(base: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """(n, 3) blend by (n,) share, bool or in [0, 1]."""
    return torch.lerp(base, other.expand_as(base), share.to(base.dtype)[:, None])


def describe_hits(
    scene: Scene, origin: Tensor, rays: Tensor, distance: Tensor, prim: Tensor, *, pixel_angle: float
) -> Hits:
    """Normals and texture coordinates of hits.

    Args:
        rays: (n, 3) unit directions.
        distance: (n,) to the hit.
        prim: (n,) primitive.
        pixel_angle: Angle between neighbouring pixels in radians.
    """
    point = origin + rays * distance[:, None]
    to_local, half, shape = scene.to_local[prim], scene.half[prim], scene.shape[prim]
    local = torch.einsum("nij,nj->ni", to_local, point - scene.centre[prim])
    normal, face, sign = _local_normals(scene, prim, local, shape)
    world = torch.einsum("nji,nj->ni", to_local, normal)  # gradients transform by the inverse transpose
    world = world / world.norm(dim=1, keepdim=True)
    facing = -(world * rays).sum(1, keepdim=True).sign()
    world = torch.where(facing < 0, -world, world)
    u, v, fu, fv, half_u, half_v = _face_coordinates(
        local, half, scene.rotation[prim], face, world, rays, distance * pixel_angle
    )
    thin_up = (half.argmin(dim=1) == 2)[:, None]  # a disc lies in its local x-y plane
    plate = torch.where(thin_up, torch.stack((local[:, 1], -local[:, 0]), dim=1), local[:, 1:])
    return Hits(
        point=point,
        normal=world,
        local=local,
        face=face,
        sign=sign,
        u=u,
        v=v,
        w=(local[:, 2] + 1) * 0.5 * torch.hypot(half[:, 1], 2 * half[:, 2]),
        fu=fu,
        fv=fv,
        half_u=half_u,
        half_v=half_v,
        sign_plane=plate,
        **{name: getattr(scene, name)[prim] for name in ("material", "colour", "accent", "tex", "salt")},
    )


def _face_coordinates(
    local: Tensor, half: Tensor, rotation: Tensor, face: Tensor, normal: Tensor, rays: Tensor, base: Tensor
) -> tuple[Tensor, ...]:
    """u, v, their footprints and half extents on the face that was hit, (n,) each, in metres."""
    metres = local * half
    end, top = face == 0, face == 2
    u = torch.where(end, metres[:, 1], metres[:, 0])
    v = torch.where(top, metres[:, 1] + half[:, 1], metres[:, 2] + half[:, 2])
    half_u = torch.where(end, half[:, 1], half[:, 0])
    half_v = torch.where(top, half[:, 1], half[:, 2])
    axis_u = torch.where(end[:, None], rotation[:, :, 1], rotation[:, :, 0])
    axis_v = torch.where(top[:, None], rotation[:, :, 1], rotation[:, :, 2])
    slant = (normal * rays).sum(1).abs().clamp_min(0.04)
    stretch_u, stretch_v = (axis_u * rays).sum(1) / slant, (axis_v * rays).sum(1) / slant
    fu, fv = base * torch.sqrt(1 + stretch_u**2), base * torch.sqrt(1 + stretch_v**2)
    return u, v, fu, fv, half_u, half_v


def _local_normals(scene: Scene, prim: Tensor, p: Tensor, shape: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unnormalised normals in the unit shape, and the face's axis and sign, all (n, ...)."""
    ends = torch.tensor(scene.kind_ends)
    kind = torch.searchsorted(ends, prim, right=True)
    rise = 0.5 * (p[:, 2] + 1)
    lean = shape[:, :3] * (kind == Kind.WEDGE)[:, None]
    tests = torch.stack(
        (
            p[:, 0] + lean[:, 0] * rise,
            -p[:, 0] + lean[:, 1] * rise,
            p[:, 1] + lean[:, 2] * rise,
            -p[:, 1] + lean[:, 2] * rise,
            p[:, 2],
            -p[:, 2],
        ),
        dim=1,
    )
    rod = kind == Kind.ROD
    pick = tests.argmax(dim=1)
    face = torch.div(pick, 2, rounding_mode="floor")
    sign = 1.0 - 2.0 * (pick % 2)
    cap = p[:, 2].abs() > p[:, :2].norm(dim=1)
    face = torch.where(rod, torch.where(cap, 2, 1), face)
    sign = torch.where(rod & cap, p[:, 2].sign(), sign)
    normal = torch.zeros_like(p).scatter(1, face[:, None], sign[:, None])
    tilt = torch.stack((lean[:, 0], lean[:, 1], lean[:, 2], lean[:, 2], 0 * rise, 0 * rise), dim=1)
    normal[:, 2] += 0.5 * tilt.gather(1, pick[:, None])[:, 0]
    round_side = torch.stack((p[:, 0], p[:, 1], torch.zeros_like(rise)), dim=1)
    normal = torch.where((rod & ~cap)[:, None], round_side, normal)
    normal = torch.where((kind == Kind.BALL)[:, None], p, normal)
    ring = torch.zeros_like(p)
    ring[:, 1] = 1.0
    return torch.where((kind == Kind.RING)[:, None], ring, normal), face, sign
