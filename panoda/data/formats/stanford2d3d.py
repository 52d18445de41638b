"""Stanford2D3D (Armeni et al. 2017): indoor pinhole images and panoramas of seven areas, used in place.

Labels are colours: R * 65536 + G * 256 + B is the place of an instance's name in ``semantic_labels.json``,
and a name begins with its class (``chair_3_office_1_area_2``). Colours with R != 0 (13,13,13 marks pixels
without data), ``<UNK>`` and pixels whose image is black are ignored. A label lies beside its image with
``rgb`` replaced by ``semantic`` in the folder and in the suffix, and nowhere else in the path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from panoda.config import Stanford2D3DDataset
from panoda.data.formats.browse import LeftOut, left_out, warn_left_out
from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.formats.listing import (
    ListedItem,
    Listing,
    check_ids,
    existing_folder,
    read_listing,
    write_listing,
)
from panoda.data.formats.patterns import glob
from panoda.labels import IGNORE_INDEX, get_label_space
from panoda.system.errors import DataError
from panoda.system.progress import track

AREAS = ("area_1", "area_2", "area_3", "area_4", "area_5a", "area_5b", "area_6")
VALIDATION = {1: ("area_5a", "area_5b"), 2: ("area_2", "area_4"), 3: ("area_1", "area_3", "area_6")}
"""Fold -> validation areas; the other areas are for training."""
NAMES = "semantic_labels.json"
UNKNOWN = "<UNK>"
_RGB, _SEMANTIC, _POSE = "_rgb.png", "_semantic.png", "_pose.json"


def fold_areas(fold: int, part: str) -> tuple[str, ...]:
    """Areas of ``train`` or ``val`` of a fold (1, 2 or 3)."""
    chosen = VALIDATION[fold]
    return chosen if part == "val" else tuple(area for area in AREAS if area not in chosen)


def download(dataset: Stanford2D3DDataset, out: Path, *, progress: bool) -> None:
    """Find the images of every split and write a pointer to the folder.

    Raises:
        DataError: an area or the list of names is missing, or images have no labels.
    """
    folder = existing_folder(dataset.path)
    names = names_file(folder)
    class_ids(folder / names)
    items: list[ListedItem] = []
    poses: list[str] = []
    for split, part in dataset.splits.items():
        for area in fold_areas(dataset.fold, part):
            found = scan_area(folder, area, dataset.variant, split=split, progress=progress)
            _require_whole(folder, area, split, dataset, [item for item, _ in found])
            items += [replace(i, label=None) if split in dataset.unlabelled else i for i, _ in found]
            poses += [pose for _, pose in found if pose is not None]
    check_ids(items)
    warn_left_out(left_out_of(folder))
    write_listing(
        out, dataset.path, items, facts={"names": names}, more_files=[names, *poses], progress=progress
    )


def list_items(dataset: Stanford2D3DDataset, raw: Path) -> Iterator[RawItem]:
    """Items in order of split, area and name; the group is the area."""
    return raw_items(dataset, read_listing(raw))


def raw_items(dataset: Stanford2D3DDataset, listing: Listing) -> Iterator[RawItem]:
    """Items of a listing, one by one; its facts say where ``semantic_labels.json`` lies."""
    panoramic = dataset.variant == "panoramic"
    return listing.raw_items(
        projection="erp" if panoramic else "pinhole",
        fov_x_deg=360.0 if panoramic else dataset.fov_x_deg,
        lat_top_deg=90.0 if panoramic else math.nan,
        lat_bottom_deg=-90.0 if panoramic else math.nan,
        crop_top=dataset.crop_top,
        crop_bottom=dataset.crop_bottom,
        encoding=label_encoding(listing.folder / listing.facts["names"]),
    )


def label_encoding(path: Path) -> Encoding:
    """Colours of instances -> ids of indoor13, as ``semantic_labels.json`` says."""
    table = tuple(enumerate(class_ids(path)))
    return Encoding(kind="palette", table=table, black_is_void=True, red_is_void=True)


def class_ids(path: Path) -> list[int]:
    """Id of indoor13, or 255 for ``<UNK>``, of every entry of ``semantic_labels.json``.

    Raises:
        DataError: unreadable file, or a name whose class is not one of indoor13.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); copy it from the data set's toolkit again"
        ) from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a list of names such as chair_3_office_1_area_2")
    space = get_label_space("indoor13")
    classes = [name.split("_")[0] for name in names]
    unknown = sorted(set(classes) - {*space.names, UNKNOWN})
    if unknown:
        raise DataError(
            f"{path}: unknown classes {', '.join(unknown[:10])}; expected "
            f"{', '.join(space.names)} or {UNKNOWN}"
        )
    ids = {name: i for i, name in enumerate(space.names)} | {UNKNOWN: IGNORE_INDEX}
    return [ids[name] for name in classes]


def names_file(folder: Path) -> str:
    """Path of ``semantic_labels.json`` relative to the data set's folder; DataError when there is none."""
    for name in (NAMES, f"assets/{NAMES}"):
        if (folder / name).is_file():
            return name
    raise DataError(
        f"{folder / NAMES}: no such file; it says what the label colours mean: copy it there from assets/ of "
        "the data set's toolkit (2D-3D-Semantics)"
    )


def scan_area(
    folder: Path, area: str, variant: str, *, split: str, progress: bool = False
) -> list[tuple[ListedItem, str | None]]:
    """Find the images of one area, in order of their names.

    Returns:
        Items with their pose files. Where a label is missing it is None; no images give an empty list.

    Raises:
        DataError: an unreadable pose file.
    """
    base = _base(area, variant)
    images = folder / base / "rgb"
    if not images.is_dir():
        return []
    files = sorted(name for name in glob(images, "*") if name.endswith(_RGB))
    return [
        _scan_image(folder, area, variant, name.removesuffix(_RGB), split)
        for name in track(files, f"listing {area}", enabled=progress)
    ]


def left_out_of(folder: Path) -> LeftOut:
    """What looks like an image of an area and is none, or cannot be read."""
    return left_out(folder, lambda path: path.endswith(_RGB) or "/rgb/" not in path)


def unused_labels(folder: Path, area: str, variant: str) -> list[str]:
    """Label files of an area that belong to no image, relative to the folder."""
    base = _base(area, variant)
    labels = sorted((folder / base / "semantic").glob(f"*{_SEMANTIC}"))
    stems = (path.name.removesuffix(_SEMANTIC) for path in labels)
    lonely = (stem for stem in stems if not (folder / base / "rgb" / f"{stem}{_RGB}").is_file())
    return [f"{base}/semantic/{stem}{_SEMANTIC}" for stem in lonely if not stem.startswith(".")]


def _base(area: str, variant: str) -> str:
    return f"{area}/{'pano' if variant == 'panoramic' else 'data'}"


def _scan_image(
    folder: Path, area: str, variant: str, stem: str, split: str
) -> tuple[ListedItem, str | None]:
    base = _base(area, variant)
    label = f"{base}/semantic/{stem}{_SEMANTIC}"
    pose: str | None = f"{base}/pose/{stem}{_POSE}"
    if variant == "panoramic" or not (folder / str(pose)).is_file():
        pose = None
    item = ListedItem(
        split=split,
        id=f"{area}/{stem.removesuffix('_domain')}",
        group=area,
        image=f"{base}/rgb/{stem}{_RGB}",
        label=label if (folder / label).is_file() else None,
        fov_x_deg=_fov_deg(folder / pose) if pose is not None else None,
    )
    return item, pose


def _require_whole(
    folder: Path, area: str, split: str, dataset: Stanford2D3DDataset, items: list[ListedItem]
) -> None:
    images = folder / _base(area, dataset.variant) / "rgb"
    if not images.is_dir():
        raise DataError(
            f"{images}: no such folder; unpack {area} there (fold {dataset.fold} needs it for split {split})"
        )
    if not items:
        raise DataError(f"{images}: no *{_RGB} files; unpack {area} again")
    for item in items:
        if item.label is None and split not in dataset.unlabelled:
            stem = Path(item.image).name.removesuffix(_RGB)
            label = images.parent / "semantic" / f"{stem}{_SEMANTIC}"
            raise DataError(f"{folder / item.image}: its label {label} is missing; unpack {area} again")


def _fov_deg(path: Path) -> float:
    """Field of view of a pose file in degrees."""
    try:
        radians = float(json.loads(path.read_text(encoding="utf-8"))["field_of_view_rads"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no readable field_of_view_rads ({error}); unpack the area again") from error
    if not 0.01 < radians < math.pi:
        raise DataError(f"{path}: field_of_view_rads is {radians}, expected an angle between 0.01 and pi")
    return math.degrees(radians)
