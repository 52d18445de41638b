"""What a check has to look at: every file of a data set as it lies in a folder, paired or not.

Nothing is opened but what says where files are. What is missing is listed, not refused, so that one check
reports all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from panoda.config import Stanford2D3DDataset
from panoda.data.formats import stanford2d3d, structured3d
from panoda.data.formats.browse import LeftOut
from panoda.data.formats.dataset import RawItem
from panoda.data.formats.declaration import Declaration, read_declaration
from panoda.data.formats.declared import raw_items
from panoda.data.formats.encoding import space_of
from panoda.data.formats.listing import ListedItem, Listing
from panoda.data.formats.scan import left_out_of, scan_split, unused_labels
from panoda.labels import get_label_space
from panoda.system.errors import DataError

LIGHTS = ("rawlight", "coldlight", "warmlight")

STANFORD_SIZES = {"panoramic": (2048, 4096), "pinhole": (1080, 1080)}
"""Variant -> published height and width."""


@dataclass
class Survey:
    """The files of a data set, and what they should be.

    Attributes:
        classes: Class names of the raw label space; empty without labels.
        expected: Split -> published number of images, None where it is not known. Splits without images are
            in it.
        sizes: Split -> published height and width, None where they vary.
        without_label: (split, image) where a label is missing.
        without_image: (split, label) that belong to no image.
        left_out: What looks like an image and is none of these.
    """

    name: str
    items: list[RawItem] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    expected: dict[str, int | None] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    without_label: list[tuple[str, Path]] = field(default_factory=list)
    without_image: list[tuple[str, Path]] = field(default_factory=list)
    left_out: LeftOut | None = None


def take_survey(name: str, folder: Path) -> Survey:
    """Find the files of every split of a data set: a built-in name, or the path of a declaration.

    Raises:
        DataError: no such folder, or a wrong encoding, pattern or list file.
        ValueError: no such declaration, or a wrong one.
    """
    declaration = read_declaration(name)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; `panoda data get {name}` says how to obtain the data set, --path "
            "names the folder where it lies"
        )
    if declaration.adapter is not None:
        return _SPECIAL[declaration.adapter](declaration, folder)
    return _declared(declaration, name, folder)


def _declared(declaration: Declaration, name: str, folder: Path) -> Survey:
    survey = Survey(declaration.name, left_out=left_out_of(folder, declaration))
    # Splits may overlap: a file is named once.
    bare: dict[Path, str] = {}
    lonely: dict[Path, str] = {}
    for split, files in declaration.splits.items():
        scan = scan_split(folder, declaration, split)
        survey.expected[split], survey.sizes[split] = files.expected, declaration.size
        for image in scan.unpaired:
            bare.setdefault(folder / image, split)
        for label in unused_labels(folder, files, scan):
            lonely.setdefault(folder / label, split)
        survey.items += raw_items(declaration, Listing(folder, scan.items, {}), name=name)
    used = {item.label for item in survey.items}
    survey.without_label = [(split, path) for path, split in bare.items()]
    survey.without_image = [(split, path) for path, split in lonely.items() if path not in used]
    if declaration.labels is not None:
        survey.classes = get_label_space(space_of(declaration.labels, name)).names
    return survey


def _stanford2d3d(declaration: Declaration, folder: Path) -> Survey:
    """Both variants of every area, each a split; a variant of which there is nothing is left out."""
    classes = get_label_space("indoor13").names
    survey = Survey(declaration.name, classes=classes, left_out=stanford2d3d.left_out_of(folder))
    names = stanford2d3d.names_file(folder)
    for variant, size in STANFORD_SIZES.items():
        items: list[ListedItem] = []
        for area in stanford2d3d.AREAS:
            found = [i for i, _ in stanford2d3d.scan_area(folder, area, variant, split=f"{area} {variant}")]
            survey.without_label += [(i.split, folder / i.image) for i in found if i.label is None]
            lonely = stanford2d3d.unused_labels(folder, area, variant)
            survey.without_image += [(f"{area} {variant}", folder / label) for label in lonely]
            items += found
        if not items:
            continue
        for area in stanford2d3d.AREAS:
            published = declaration.splits.get(f"{area} {variant}")
            survey.expected[f"{area} {variant}"] = published.expected if published else None
            survey.sizes[f"{area} {variant}"] = size
        section = Stanford2D3DDataset.model_validate(
            {"kind": "stanford2d3d", "path": str(folder), "variant": variant}
        )
        survey.items += stanford2d3d.raw_items(section, Listing(folder, items, {"names": names}))
    if not survey.items:
        raise DataError(
            f"{folder}: no images: expected area_1/pano/rgb and area_1/data/rgb to area_6/...; unpack the "
            "areas there"
        )
    return survey


def _structured3d(declaration: Declaration, folder: Path) -> Survey:
    """Every room in every light that is there; its label goes with the first. Invalid scenes are left out."""
    classes = get_label_space("nyu40").names
    survey = Survey(declaration.name, classes=classes, left_out=structured3d.left_out_of(folder))
    scenes = {
        n: path for n, path in structured3d.find_scenes(folder).items() if n not in structured3d.INVALID
    }
    for light, (part, span) in product(LIGHTS, structured3d.SCENES.items()):
        labelled = light == LIGHTS[0]
        split = part if labelled else f"{part}, {light}"
        rooms = [
            room
            for number in sorted(set(scenes) & set(span))
            for room in structured3d.scan_scene(folder, scenes[number], light, split=split)
        ]
        there = [room for room in rooms if (folder / room.image).is_file()]
        if not there and not labelled:
            continue
        survey.expected[split], survey.sizes[split] = None, declaration.size
        labels = {room.image for room in rooms if labelled and (folder / str(room.label)).is_file()}
        items = [room if room.image in labels else replace(room, label=None) for room in there]
        if labelled:
            survey.without_label += [(split, folder / item.image) for item in items if item.label is None]
            lonely = (room for room in rooms if room.image in labels and room not in there)
            survey.without_image += [(split, folder / str(room.label)) for room in lonely]
        survey.items += structured3d.raw_items(Listing(folder, items, {}))
    if not survey.items:
        raise DataError(
            f"{folder}: no scenes: expected scene_00000/2D_rendering/<room>/panorama/full/rgb_rawlight.png; "
            "unpack Structured3D_panorama_*.zip there"
        )
    return survey


_SPECIAL: dict[str, Callable[[Declaration, Path], Survey]] = {
    "stanford2d3d": _stanford2d3d,
    "structured3d": _structured3d,
}
