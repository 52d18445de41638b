"""What was handed to an annotation tool: ``task.json`` beside the exported pictures.

It names the label space, the photographs with the part of the sphere that they show, and, where perspective tiles were
cut, how each lies on its panorama: the way back. ``before/`` has the labels as they were exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from panoda.config.section import Section
from panoda.data.formats.pixels import UNREADABLE
from panoda.deployment.view import View
from panoda.labels import LabelSpace
from panoda.system.errors import DataError

FILE, IMAGES, BEFORE = "task.json", "images", "before"
Tool = Literal["cvat", "label-studio"]


class Tile(Section):
    """A perspective view of a panorama; square."""

    name: str
    """Of its files, without suffix."""
    azimuth_deg: float
    """Of its middle against the middle of the panorama, right positive."""
    elevation_deg: float
    """Above the horizon."""
    fov_deg: float
    """Field of view across and down."""
    side: int
    """Pixels."""


class Photograph(Section):
    """One photograph of the task."""

    name: str
    """Of its files, without suffix."""
    image: str
    """The file that was predicted."""
    bytes: int | None = None
    """Size of that file; None in a task of before."""
    height: int
    """Pixels, upright."""
    width: int
    """Pixels, upright."""
    centre_lon_deg: float
    """Longitude of its middle column."""
    level: tuple[float, float] | None
    """Pitch and roll in degrees that prediction took out; tiles are level then."""
    tiles: tuple[Tile, ...] = ()
    """Empty: it was exported whole."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what the tool shows of it."""
        return tuple(tile.name for tile in self.tiles) or (self.name,)


class Task(Section):
    """What ``panoda annotate export`` wrote."""

    format: Literal["panoda-annotation-1"] = "panoda-annotation-1"
    """Version of this file."""
    tool: Tool
    """Whose format it has."""
    label_space: str
    """Name of the model's label space."""
    class_names: tuple[str, ...]
    """Position = train id."""
    palette: tuple[tuple[int, int, int], ...]
    """RGB colour of each class."""
    projection: Literal["pinhole", "erp"]
    """Of all photographs."""
    fov_x_deg: float
    """Of all photographs."""
    latitudes_deg: tuple[float, float] | None
    """Of the upper and lower edge of panoramas."""
    photographs: tuple[Photograph, ...]
    """In the order of the predictions."""

    @property
    def space(self) -> LabelSpace:
        """Class names and colours."""
        return LabelSpace(self.label_space, self.class_names, self.palette)

    def view(self, photograph: Photograph) -> View:
        """The part of the sphere that a photograph shows."""
        return View(
            self.projection,
            self.fov_x_deg,
            False,
            "",
            latitudes_deg=self.latitudes_deg,
            centre_lon_deg=photograph.centre_lon_deg,
            level=photograph.level,
        )


def read_task(folder: Path) -> Task:
    """The task in a folder.

    Raises:
        ValueError: there is none, or it was changed by hand.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the folder that `panoda annotate export` wrote")
    try:
        return Task.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: not a task of this version of panoda; export it again") from error


def read_ids(path: Path, height: int, width: int) -> np.ndarray:
    """The train ids (H, W) uint8 of a label PNG of ours.

    Raises:
        DataError: missing, unreadable, or of another size.
    """
    try:
        with Image.open(path) as image:
            found = np.array(image)
    except UNREADABLE as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(f"{path}: {reason}") from error
    check_size(path, found.shape, (height, width))
    return found


def check_size(what: object, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """DataError where a label does not have the size of its picture."""
    if found != expected:
        raise DataError(
            f"{what}: {' x '.join(map(str, found))} pixels (height x width), expected "
            f"{expected[0]} x {expected[1]}: keep the size of the exported picture"
        )
