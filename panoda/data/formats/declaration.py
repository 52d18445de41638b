"""A data set declared in a YAML file: where files are, how they pair, how labels are encoded, how to get it.

The built-in data sets (``panoda/data/formats/declarations/*.yaml``) and the user's own use the same mechanism. A
path pattern is relative to the data set's folder: ``*`` matches within one name, ``{id}`` and ``{group}``
match the same and are remembered; ``{id}`` may match across folders as ``{id:path}``. A label pattern is
filled with what its image matched. File suffixes match in upper and lower case. An image's id is what
``{id}`` matched, after ``group/`` where there is a ``{group}``.

Example:
    splits:
      train:
        images: [leftImg8bit/train/{group}/{id}_leftImg8bit.png]
        labels: [gtFine/train/{group}/{id}_gtFine_labelIds.png]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from panoda.config import Section, problems
from panoda.system.files import read_yaml

BUILT_IN = Path(__file__).parent / "declarations"
DOWNLOADS = Path("data/downloads")


class LabelEncoding(Section):
    """What the values of a label file mean."""

    space: str
    """Label space of the decoded ids: a built-in one, or the path of a YAML file that defines one (relative
    to this file)."""
    encoding: Literal["ids", "palette"] = "ids"
    """ids: single-channel class ids (palette PNGs count as ids). palette: RGB colours."""
    ids: dict[int, int] | None = None
    """Raw id -> id of the space (255 = ignored); null = raw ids are those of the space, 255 is unlabelled.
    A negative id also stands for its two's complement in unsigned files (-1: 255 or 65535)."""
    palette: dict[str, int] | None = None
    """palette only: "R,G,B" -> id of the space; null = the palette of the space."""
    void: list[int] = []
    """Raw ids (or, for palette, none) that mean unlabelled, besides those that ``ids`` maps to 255."""
    others: Literal["ignore", "error"] = "error"
    """Values that are listed nowhere: ignored, or reported as wrong."""


class SplitFiles(Section):
    """The files of one split, as published."""

    images: list[str] = []
    """Patterns of image files."""
    labels: list[str] = []
    """Patterns of the label of an image; the first that exists is taken. Empty = unlabelled."""
    list_file: str | None = None
    """CSV or parquet list (relative to the folder) with columns image and, optionally, label, group and
    split; instead of patterns."""
    group_lists: dict[str, str] = {}
    """Group -> text file (relative to the folder) that names its images or their folders, one a line; in
    place of what ``{group}`` matches. With patterns only."""
    take_every: Annotated[int, Field(ge=2)] | None = None
    """Only every so many-th image of what the patterns match, in order of path: a part held out."""
    leave_every: Annotated[int, Field(ge=2)] | None = None
    """All images but those that ``take_every`` of the same number takes."""
    expected: int | None = None
    """Published number of images; a difference is reported."""


class RemoteFile(Section):
    """One file of a data set on the network."""

    name: str
    """File name in the download folder."""
    url: str | None = None
    """http(s) address."""
    google_drive: str | None = None
    """Google Drive file id (or folder id, with ``folder: true``)."""
    folder: bool = False
    """``google_drive`` names a folder."""
    cityscapes: bool = False
    """A package of the Cityscapes downloader (needs the user's login)."""
    bytes: int | None = None
    """Size, when known."""
    sha256: str | None = None
    """Checksum, when known."""
    md5: str | None = None
    """Checksum, when known."""
    unpack_to: str | None = "."
    """Folder (relative to the data set's) that the archive is unpacked into; null = not an archive."""


class Declaration(Section):
    """One data set."""

    name: str
    """Short name."""
    title: str
    """Full name."""
    projection: Literal["pinhole", "erp"]
    """Camera model."""
    fov_x_deg: Annotated[float, Field(gt=0, le=360)]
    """Horizontal field of view in degrees; 360 for a full circle."""
    lat_top_deg: Annotated[float, Field(ge=-90, le=90)] = 90.0
    """erp: latitude of the uncropped upper edge in degrees."""
    lat_bottom_deg: Annotated[float, Field(ge=-90, le=90)] = -90.0
    """erp: latitude of the uncropped lower edge in degrees."""
    crop_top: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the height cut off at the top."""
    crop_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the height cut off at the bottom."""
    ignore_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the cropped height, at the bottom, where nothing is learned."""
    size: tuple[int, int] | None = None
    """Published height and width in pixels; null = they vary."""
    labels: LabelEncoding | None = None
    """Label encoding; null = no labels."""
    orientation: Literal["auto", "exif", "stored"] = "auto"
    """What labels were drawn on where files have an EXIF orientation; images are turned upright by theirs
    in any case. exif: on the upright image, and each label is turned by its own tag. stored: on the stored
    pixels of the image, and each label is turned with it. auto: as their sizes tell; where they cannot, the
    label is refused."""
    splits: dict[str, SplitFiles]
    """Splits by published name."""
    adapter: Literal["stanford2d3d", "structured3d"] | None = None
    """Kind of data set in params.yaml whose code reads it, where a declaration is not enough; the patterns of
    the splits then only tell what is present."""
    files: list[RemoteFile] = []
    """What to download; empty = obtained by hand."""
    manual: str = ""
    """How to obtain it by hand: where to apply, which archives to fetch, where to put them."""
    licence: str = ""
    """Licence in a few words."""
    citation: str = ""
    """Whom to cite."""
    homepage: str = ""
    """Where it is published."""
    size_gb: float | None = None
    """Space of the unpacked data in GB (10^9 bytes), about."""

    @model_validator(mode="after")
    def _check(self) -> Declaration:
        if self.projection == "erp" and self.lat_top_deg <= self.lat_bottom_deg:
            raise ValueError("lat_top_deg must lie above lat_bottom_deg")
        if self.projection == "pinhole" and self.fov_x_deg >= 180:
            raise ValueError(f"fov_x_deg is {self.fov_x_deg:g}; a pinhole camera sees less than 180 degrees")
        if self.crop_top + self.crop_bottom >= 1:
            raise ValueError("crop_top and crop_bottom leave nothing of the images")
        for name, split in self.splits.items():
            if bool(split.images) == (split.list_file is not None):
                raise ValueError(f"split {name}: give images or list_file, one of them")
            if split.group_lists and split.list_file is not None:
                raise ValueError(f"split {name}: write the groups into the list file in place of group_lists")
            if split.list_file is not None and (split.take_every or split.leave_every):
                raise ValueError(f"split {name}: take_every and leave_every go with patterns, not list_file")
            if split.labels and self.labels is None:
                raise ValueError(f"split {name} has labels, but there is no section labels")
        return self


def built_in() -> dict[str, Path]:
    """Name -> file of the built-in declarations."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.yaml"))}


def default_folder(declaration: Declaration) -> Path:
    """Where a data set goes when no folder is named; relative to the project root."""
    return DOWNLOADS / declaration.name


def read_declaration(name: str) -> Declaration:
    """A built-in declaration by name, or one from a YAML file.

    Raises:
        ValueError: no such declaration, or the file is not a valid one; the message says what is wrong.
    """
    path = built_in().get(name) or Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(built_in())
        raise ValueError(f"{name}: no such file, and no built-in data set of that name; known: {known}")
    tree = read_yaml(path)
    try:
        return Declaration.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(problems(Declaration, tree, error))}") from error
