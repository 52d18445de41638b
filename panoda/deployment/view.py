"""What prediction takes an image for: a panorama closed around the circle, a part of one, or a photograph.

What the user says comes first, then what the file says (GPano, then the lens in EXIF), then what the model
was trained on, then the shape. What was assumed is said of every image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from panoda.config import Projection
from panoda.data.formats.gpano import FileFacts, read_facts
from panoda.geometry.erp import is_full_circle

Asked = Literal["auto", "erp", "pinhole"]
FULL_CIRCLE_ASPECT = 1.9
"""Images at least this many times wider than high may be full circles; narrower ones cannot."""


@dataclass(frozen=True)
class View:
    """What an image is taken for.

    Attributes:
        projection: 'erp' or 'pinhole'.
        fov_x_deg: Horizontal field of view in degrees; None where nothing tells.
        wrap: Columns are closed around the circle.
        evidence: Why, in a few words.
        notes: Metadata that was not used, and the like.
        latitudes_deg: Of the upper and lower edge of a panorama in degrees, where the file says them.
        guessed: A full circle by its shape alone; it may as well be a photograph.
    """

    projection: Projection
    fov_x_deg: float | None
    wrap: bool
    evidence: str
    notes: tuple[str, ...] = ()
    latitudes_deg: tuple[float, float] | None = None
    guessed: bool = False

    def band(self, height: int, width: int) -> tuple[float, float]:
        """Latitudes of the upper and lower edge in radians; of square pixels about the horizon if unknown.

        Example:
            >>> [round(math.degrees(edge)) for edge in View("erp", 360.0, True, "").band(512, 2048)]
            [45, -45]
        """
        if self.latitudes_deg is not None:
            return math.radians(self.latitudes_deg[0]), math.radians(self.latitudes_deg[1])
        half = min(90.0, (self.fov_x_deg or 360.0) * height / width / 2)
        return math.radians(half), -math.radians(half)

    def __str__(self) -> str:
        """Such as "half circle of 180 degrees (GPano)"."""
        if self.projection == "pinhole":
            what = "pinhole photograph"
            what += f" of {self.fov_x_deg:.0f} degrees" if self.fov_x_deg else ""
        elif self.fov_x_deg is None:
            what = "panorama of unknown width"
        elif is_full_circle(self.projection, self.fov_x_deg):
            what = "full circle"
        else:
            half = "half circle" if abs(self.fov_x_deg - 180) < 0.5 else "part of a circle"
            what = f"{half} of {self.fov_x_deg:.0f} degrees"
        return "; ".join([f"{what} ({self.evidence})", *self.notes])


def view_of(
    path: Path | None,
    height: int,
    width: int,
    *,
    projection: Asked = "auto",
    wrap: bool | None = None,
    trained: Mapping[str, Any] | None = None,
) -> View:
    """What an image is taken for.

    Args:
        path: Its file, or None: no metadata.
        trained: ``params["prepared"]`` of the model's card: the images it was trained on.
    """
    facts = (None if path is None else read_facts(path)) or FileFacts(height, width)
    known = None if projection == "pinhole" else _from_area(facts)
    if wrap:
        found = known if known and known.wrap else View("erp", 360.0, True, "--wrap")
    elif projection == "pinhole":
        found = View("pinhole", facts.fov_x_deg, False, "--projection pinhole")
    elif projection == "erp":
        found = known or _by_shape(height, width, "--projection erp")
    else:
        found = known or _without_area(facts, height, width, trained or {}, wrap)
    if wrap is False and found.wrap:
        found = replace(found, wrap=False, evidence=f"{found.evidence}, --no-wrap")
    return replace(found, notes=facts.notes)


def pixels_per_radian(trained: Mapping[str, Any]) -> float | None:
    """Horizontal pixels per radian of the panoramas that a model was trained on; None for other models."""
    if trained.get("projection", "erp" if trained.get("full_circle") else "") != "erp":
        return None
    return float(trained["width"]) / math.radians(float(trained.get("fov_x_deg", 360.0)))


def width_at(view: View, resolution: float) -> float | None:
    """Width in pixels at which an image has ``resolution`` pixels per radian (at its centre, for pinhole)."""
    if view.fov_x_deg is None:
        return None
    angle = math.radians(view.fov_x_deg)
    return resolution * (angle if view.projection == "erp" else 2 * math.tan(angle / 2))


def _from_area(facts: FileFacts) -> View | None:
    if facts.area is None:
        return None
    fov = facts.area.fov_x_deg
    edges = (facts.area.lat_top_deg, facts.area.lat_bottom_deg)
    return View("erp", fov, is_full_circle("erp", fov), "GPano", latitudes_deg=edges)


def _by_shape(height: int, width: int, evidence: str) -> View:
    """A panorama by its shape: latitudes end at 180 degrees, so a narrow one is no full circle."""
    full = width >= FULL_CIRCLE_ASPECT * height
    return View("erp", 360.0 if full else 180.0 * width / height, full, evidence)


def _without_area(
    facts: FileFacts, height: int, width: int, trained: Mapping[str, Any], wrap: bool | None
) -> View:
    if facts.lens:
        return View("pinhole", facts.fov_x_deg, False, "EXIF focal length")
    shape = "2:1" if abs(width - 2 * height) <= 2 else f"{width / height:.2f}:1"
    evidence = shape if facts.notes else f"{shape}, no metadata"
    if width < FULL_CIRCLE_ASPECT * height or wrap is False:
        return View("pinhole", None, False, evidence if wrap is None else f"{evidence}, --no-wrap")
    kind, fov = trained.get("projection"), float(trained.get("fov_x_deg", 360.0))
    if kind == "pinhole":
        return View("pinhole", None, False, f"{evidence}; the model saw pinhole images in training")
    if kind == "erp" and not is_full_circle("erp", fov):
        return View("erp", fov, False, f"{evidence}; as the model's training images")
    return View("erp", 360.0, True, evidence, guessed=True)
