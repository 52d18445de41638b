"""What prediction takes an image for: a panorama closed around the circle, a part of one, or a photograph.

What the user says comes first, then what the file says (GPano, then the lens in EXIF), then whether its ends meet,
then what the model was trained on, then the shape. What was assumed is said of every image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from panoda.config import Projection
from panoda.data.formats.gpano import FileFacts, Pose, read_facts
from panoda.geometry.area import Area, tilt
from panoda.geometry.erp import FULL_CIRCLE_DEG, is_full_circle

Asked = Literal["auto", "erp", "band", "pinhole"]
FULL_CIRCLE_ASPECT = 1.9
"""Images at least this many times wider than high may be full circles; narrower ones cannot."""
ENDS_MEET = 2.5
"""The ends of a full circle differ at most so many times as much as neighbouring columns usually do. On 33 street
panoramas the largest was 2.0; of 147 photographs 98 % lie above 2.5."""
ENDS_COLUMNS = 1024
"""So many columns, means of those of the image, are compared: neighbours in a larger image would be too alike."""
_LEAST = 1.0


@dataclass(frozen=True)
class Geometry:
    """What the user says of images; auto and None = as their metadata, the model and their shape say.

    Attributes:
        projection: erp: equirectangular; band: a full circle of a part of the latitudes; pinhole: a photograph.
        fov_deg: Horizontal field of view in degrees.
        lat_deg: Latitudes of the upper and lower edge of a panorama in degrees, up positive.
        wrap: Whether it closes around the circle.
        upright: Level the horizon: predict as if the camera had been held level, and turn the labels back.
        pitch_deg: With ``upright``: the camera's pitch (its middle above the horizon) in place of the file's.
        roll_deg: With ``upright``: its roll (the horizon turns counter-clockwise) in place of the file's.

    Raises:
        ValueError: angles that cannot be, or that contradict each other.
    """

    projection: Asked = "auto"
    fov_deg: float | None = None
    lat_deg: tuple[float, float] | None = None
    wrap: bool | None = None
    upright: bool = False
    pitch_deg: float | None = None
    roll_deg: float | None = None

    def __post_init__(self) -> None:
        if self.projection not in get_args(Asked):
            raise ValueError(
                f"projection is {self.projection!r}; expected one of {', '.join(get_args(Asked))}"
            )
        pinhole, fov = self.projection == "pinhole", self.fov_deg
        if fov is not None and not (0 < fov <= 360 and math.isfinite(fov)):
            raise ValueError(f"field of view of {fov:g} degrees: expected more than 0, and 360 at most")
        if pinhole and fov is not None and fov > 170:
            raise ValueError(
                f"a pinhole camera of {fov:g} degrees: expected 170 at most; is it --projection erp?"
            )
        if pinhole and (self.wrap or self.lat_deg is not None):
            what = "circles: leave out --wrap" if self.wrap else "bands of latitudes: leave out --lat"
            raise ValueError(f"pinhole images are no {what}, or give --projection erp")
        if fov is not None and fov < FULL_CIRCLE_DEG and (self.wrap or self.projection == "band"):
            raise ValueError(
                f"{fov:g} degrees are no full circle: leave out --fov, --wrap or --projection band"
            )
        if self.lat_deg is not None and not 90 >= self.lat_deg[0] > self.lat_deg[1] >= -90:
            raise ValueError(
                f"latitudes from {self.lat_deg[0]:g} to {self.lat_deg[1]:g}: expected the upper edge, then the "
                "lower, both from 90 to -90 degrees"
            )
        for name, angle, limit in (("pitch", self.pitch_deg, 90), ("roll", self.roll_deg, 180)):
            if angle is not None and not -limit <= angle <= limit:
                raise ValueError(f"{name} of {angle:g} degrees: expected -{limit} to {limit}")
            if angle is not None and not self.upright:
                raise ValueError(f"a {name} is for levelling: add --upright")


AUTO = Geometry()
"""Nothing is said."""


@dataclass(frozen=True)
class View:
    """What an image is taken for.

    Attributes:
        projection: 'erp' or 'pinhole'.
        fov_x_deg: Horizontal field of view in degrees; None where nothing tells.
        wrap: Columns are closed around the circle.
        evidence: Why, in a few words.
        notes: Metadata that was not used, and the like.
        latitudes_deg: Of the upper and lower edge of a panorama in degrees, where something says them.
        guessed: A full circle by its shape alone; it may as well be a photograph.
        centre_lon_deg: Longitude of the middle column in the full sphere that the file is cut from.
        pose: How the camera was held, by the file.
        level: Pitch and roll in degrees that prediction takes out; None = the image is taken as level.
    """

    projection: Projection
    fov_x_deg: float | None
    wrap: bool
    evidence: str
    notes: tuple[str, ...] = ()
    latitudes_deg: tuple[float, float] | None = None
    guessed: bool = False
    centre_lon_deg: float = 0.0
    pose: Pose = Pose()
    level: tuple[float, float] | None = None

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

    @property
    def turn(self) -> Tensor:
        """(3, 3) rotation of rays by the pitch and roll of ``level``."""
        return torch.eye(3) if self.level is None else tilt(*map(math.radians, self.level))

    def area(self, height: int, width: int) -> Area:
        """The part of the sphere that a panorama of this size shows."""
        fov = math.radians(self.fov_x_deg or 360.0)
        top, bottom = self.band(height, width)
        return Area(math.radians(self.centre_lon_deg) - fov / 2, fov, top, bottom)

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
    geometry: Geometry = AUTO,
    trained: Mapping[str, Any] | None = None,
    pixels: np.ndarray | None = None,
    facts: FileFacts | None = None,
) -> View:
    """What an image is taken for.

    Args:
        path: Its file, or None: no metadata.
        trained: ``params["prepared"]`` of the model's card: the images it was trained on.
        pixels: (H, W, 3) uint8, to look whether its ends meet; None = its shape alone tells.
        facts: What its metadata say, where they do not stand in an image file.
    """
    if facts is None:
        facts = (None if path is None else read_facts(path)) or FileFacts(height, width)
    asked, wrap = geometry.projection, geometry.wrap
    if asked == "auto" and geometry.lat_deg is not None:
        asked = "erp"  # a photograph has no latitudes
    known = None if asked == "pinhole" else _from_area(facts)
    if wrap or asked == "band":
        why = "--wrap" if wrap else "--projection band"
        found = known if known and known.wrap else View("erp", 360.0, True, why)
    elif asked == "pinhole":
        found = View("pinhole", facts.fov_x_deg, False, "--projection pinhole")
    elif asked == "erp":
        why = "--projection erp" if geometry.projection == "erp" else "by its shape"
        found = known or _by_shape(height, width, why)
    else:
        found = known or _without_area(facts, height, width, trained or {}, wrap, pixels)
    found = _told(found, geometry)
    if wrap is False and found.wrap:
        found = replace(found, wrap=False, evidence=f"{found.evidence}, --no-wrap")
    level, said = _level(found, facts, geometry)
    return replace(found, notes=(*facts.notes, *said), pose=facts.pose, level=level)


def ends_meet(pixels: np.ndarray) -> bool:
    """Whether the right end of (H, W, 3) pixels goes on at the left one, as that of a full circle does.

    Example:
        >>> ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)
        >>> ends_meet(ramp), ends_meet(np.concatenate((ramp, ramp[:, ::-1]), 1))
        (False, True)
    """
    height, width = pixels.shape[:2]
    block = -(-width // ENDS_COLUMNS)
    some = pixels[:: max(1, height // 256)]
    half = width // block // 2 * block  # whole blocks from both ends, so that these are kept
    ends = (some[:, :half], some[:, width - half :])
    left, right = (part.reshape(len(some), -1, block, 3).mean(axis=2) for part in ends)
    inside = (np.abs(np.diff(part, axis=1)).mean(axis=(0, 2)) for part in (left, right))
    usual = float(np.median(np.concatenate(list(inside))))
    return float(np.abs(left[:, 0] - right[:, -1]).mean()) <= ENDS_MEET * max(usual, _LEAST)


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
    fov, closed = facts.area.fov_x_deg, is_full_circle("erp", facts.area.fov_x_deg)
    edges = (facts.area.lat_top_deg, facts.area.lat_bottom_deg)
    centre = facts.area.centre_lon_deg
    return View("erp", fov, closed, facts.source, latitudes_deg=edges, centre_lon_deg=centre)


def _told(found: View, geometry: Geometry) -> View:
    """The view with the angles that the user gives."""
    fov, lat = geometry.fov_deg, geometry.lat_deg
    if fov is not None:
        # Only more than a pinhole camera sees makes a panorama of what was guessed from its shape; latitudes of
        # other degrees no longer hold.
        sure = found.projection == "erp" and not found.guessed
        kind: Projection = "erp" if sure or fov > 170 else "pinhole"
        found = replace(
            found,
            projection=kind,
            fov_x_deg=fov,
            wrap=is_full_circle(kind, fov),
            evidence=f"{found.evidence}, --fov",
            latitudes_deg=found.latitudes_deg if fov == found.fov_x_deg else None,
            guessed=False,
        )
    if lat is not None and found.projection == "erp":
        found = replace(found, latitudes_deg=lat, evidence=f"{found.evidence}, --lat", guessed=False)
    return found


def _level(
    found: View, facts: FileFacts, geometry: Geometry
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Pitch and roll to take out, and what to say about it."""
    if not geometry.upright:
        return None, ()
    if found.projection == "pinhole":
        return None, ("not levelled: a photograph",)
    given, pose = (geometry.pitch_deg, geometry.roll_deg), facts.pose
    if given != (None, None):
        angles, source = given, "given"
    elif (pose.pitch_deg, pose.roll_deg) != (None, None):
        angles, source = (pose.pitch_deg, pose.roll_deg), facts.source
    else:
        return None, ("not levelled: no pitch or roll in its metadata; give --pitch and --roll",)
    pitch, roll = angles[0] or 0.0, angles[1] or 0.0
    return (pitch, roll), (f"levelled by pitch {pitch:g} and roll {roll:g} ({source})",)


def _by_shape(height: int, width: int, evidence: str) -> View:
    """A panorama by its shape: latitudes end at 180 degrees, so a narrow one is no full circle."""
    full = width >= FULL_CIRCLE_ASPECT * height
    return View("erp", 360.0 if full else 180.0 * width / height, full, evidence)


def _without_area(
    facts: FileFacts,
    height: int,
    width: int,
    trained: Mapping[str, Any],
    wrap: bool | None,
    pixels: np.ndarray | None,
) -> View:
    if facts.lens:
        return View("pinhole", facts.fov_x_deg, False, "EXIF focal length")
    shape = "2:1" if abs(width - 2 * height) <= 2 else f"{width / height:.2f}:1"
    evidence = shape if facts.notes else f"{shape}, no metadata"
    if width < FULL_CIRCLE_ASPECT * height or wrap is False:
        return View("pinhole", None, False, evidence if wrap is None else f"{evidence}, --no-wrap")
    meet = None if pixels is None else ends_meet(pixels)
    if meet:
        return View("erp", 360.0, True, f"{evidence}, its ends meet", guessed=True)
    evidence += "" if meet is None else ", its ends do not meet"
    kind, fov = trained.get("projection"), float(trained.get("fov_x_deg", 360.0))
    if kind == "pinhole":
        return View("pinhole", None, False, f"{evidence}; the model saw pinhole images in training")
    if kind == "erp" and not is_full_circle("erp", fov):
        return View("erp", fov, False, f"{evidence}; as the model's training images")
    if meet is False:
        return View("pinhole", None, False, evidence, guessed=True)
    return View("erp", 360.0, True, evidence, guessed=True)
