"""What a label says of a place: class shares by pixel and by solid angle, view factors of sky and green.

A view factor is the share of a class in the light that a horizontal surface at the camera gets from above: its
solid angle in the upper hemisphere, weighted by the sine of the latitude (Johnson and Watson, 1984, for the sky).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from panoda.deployment.view import View
from panoda.geometry.pinhole import pinhole_solid_angles
from panoda.labels import LabelSpace

SKY = frozenset({"sky"})
GREEN = frozenset({"vegetation", "tree", "palm", "plant", "grass"})
"""Names of classes that are sky or green, in any label space."""
HEMISPHERE_SEEN = 0.99
"""Share of the upper hemisphere, so weighted, that an image must show for view factors."""
_STRIP_PIXELS = 2**20


def pixel_shares(label: np.ndarray, space: LabelSpace) -> dict[str, float]:
    """Class name -> its share of the pixels of (H, W) train ids, 0..1."""
    counts = np.zeros(256, dtype=np.int64)
    for rows in strips(*label.shape):
        counts += np.bincount(label[rows.start : rows.stop].ravel(), minlength=256)
    return {name: float(counts[k] / label.size) for k, name in enumerate(space.names)}


def solid_angle_shares(label: np.ndarray, space: LabelSpace, view: View) -> dict[str, float] | None:
    """Class name -> its share of the solid angle that the image shows, 0..1; None where the lens is unknown."""
    if view.projection == "pinhole" and view.fov_x_deg is None:
        return None
    total = np.zeros(256)
    for rows in strips(*label.shape):
        total += _weighted(label[rows.start : rows.stop], solid_angles(view, label.shape, rows))
    return {name: float(total[k] / total.sum()) for k, name in enumerate(space.names)}


def view_factors(label: np.ndarray, space: LabelSpace, view: View) -> dict[str, float | None]:
    """``sky`` and ``green`` -> their view factors, 0..1.

    None for both where the image does not show the whole upper hemisphere, and for one that the label space has
    no class of. A levelled image counts from its level horizon.
    """
    if view.projection == "pinhole":
        return {"sky": None, "green": None}
    height, width = label.shape
    area, total, seen = view.area(height, width), np.zeros(256), 0.0
    middle = torch.linspace(area.lat_top, area.lat_bottom, 2 * height + 1, dtype=torch.float64)[1::2]
    for rows in strips(*label.shape):
        if view.level is None:
            up = middle[rows.start : rows.stop, None].sin()
        else:
            up = -(area.rays(height, width, rows) @ view.turn.T)[..., 1].double()
        weights = solid_angles(view, label.shape, rows) * up.clamp(min=0).numpy()
        found = _weighted(label[rows.start : rows.stop], weights)
        total += found
        seen += float(found.sum())
    if seen < HEMISPHERE_SEEN * math.pi:
        return {"sky": None, "green": None}
    factors: dict[str, float | None] = {}
    for what, names in (("sky", SKY), ("green", GREEN)):
        ids = [k for k, name in enumerate(space.names) if name.lower() in names]
        factors[what] = float(total[ids].sum() / seen) if ids else None
    return factors


def strips(height: int, width: int) -> Iterator[range]:
    """Rows of an image, so many at a time that a strip is small."""
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield range(top, min(top + step, height))


def solid_angles(view: View, shape: tuple[int, ...], rows: range | None = None) -> np.ndarray:
    """Steradians of the pixels of an image of (H, W), or of some rows: (h, W), or (h, 1) where a row's are alike.

    Raises:
        ValueError: a photograph whose lens is unknown.
    """
    height, width = shape
    rows = rows or range(height)
    if view.projection == "erp":
        return view.area(height, width).solid_angles(height, width)[rows.start : rows.stop, None].numpy()
    fov = math.radians(view.fov_x_deg or 0.0)
    return pinhole_solid_angles(height, width, fov_x=fov, rows=rows).numpy()


def _weighted(label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(256,) sums of the weights of every id; (h, W) or (h, 1) weights."""
    if weights.shape[1] > 1:
        return np.bincount(label.ravel(), np.broadcast_to(weights, label.shape).ravel(), 256)
    # Rows of one weight: count first, in one pass.
    places = label + (256 * np.arange(len(label), dtype=np.int64))[:, None]
    return weights[:, 0] @ np.bincount(places.ravel(), minlength=256 * len(label)).reshape(-1, 256)
