"""Structured3D (Zheng et al. 2020): rendered indoor panoramas with NYU40 labels, used in place.

``scene_<number>/2D_rendering/<room>/panorama/full/`` holds ``rgb_{rawlight,coldlight,warmlight}.png`` and an
8-bit ``semantic.png``: 0 is unlabelled, v is class v - 1 of ``nyu40``. Scenes 0-2999 are for training,
3000-3249 for validation, 3250-3499 for testing. Scenes that the publishers call invalid are skipped, and so
are rooms whose files are missing or broken: the published archives have some. ``skipped.csv`` beside the
pointer lists both.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from panoda.config import Structured3DDataset
from panoda.data.formats.browse import LeftOut, left_out, warn_left_out
from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.formats.listing import ListedItem, Listing, existing_folder, read_listing, write_listing
from panoda.data.formats.pixels import UNREADABLE, open_image
from panoda.labels import IGNORE_INDEX, get_label_space
from panoda.system.errors import DataError
from panoda.system.progress import track

SCENES = {"train": range(0, 3000), "val": range(3000, 3250), "test": range(3250, 3500)}
INVALID = frozenset({1155, 1192, 1714, 1816, 1852, 3398})
"""Scenes that the publishers list as broken."""
SKIPPED = "skipped.csv"

log = logging.getLogger(__name__)


def download(dataset: Structured3DDataset, out: Path, *, progress: bool) -> None:
    """Find the rooms of every split and write a pointer to the folder and a list of what was skipped.

    Raises:
        DataError: no such folder, or a split without usable rooms.
    """
    folder = existing_folder(dataset.path)
    scenes = find_scenes(folder)
    items: list[ListedItem] = []
    skipped: list[tuple[str, str]] = []
    for split, part in dataset.splits.items():
        chosen = [number for number in sorted(scenes) if number in SCENES[part]]
        members: list[ListedItem] = []
        for number in track(chosen, f"listing {part}", enabled=progress):
            if number in INVALID:
                skipped.append((scenes[number], "the publishers call this scene invalid"))
            else:
                members += _scene_items(folder, scenes[number], split, dataset, skipped)
        if not members:
            span = SCENES[part]
            raise DataError(
                f"{folder}: split {part} has no usable room: expected scene_{span[0]:05d} to "
                f"scene_{span[-1]:05d} with 2D_rendering/<room>/panorama/full/rgb_{dataset.light}.png and "
                f"semantic.png, found {len(chosen)} such scenes; unpack Structured3D_panorama_*.zip there"
            )
        items += members
    warn_left_out(left_out_of(folder))
    pd.DataFrame(skipped, columns=["path", "reason"]).to_csv(out / SKIPPED, index=False)
    if skipped:
        log.warning("%s: skipped %d rooms and scenes; %s lists them", folder, len(skipped), SKIPPED)
    write_listing(out, dataset.path, items, facts={"skipped": len(skipped)}, progress=progress)


def list_items(dataset: Structured3DDataset, raw: Path) -> Iterator[RawItem]:
    """Items in order of split, scene and room; the group is the scene."""
    return raw_items(read_listing(raw))


def raw_items(listing: Listing) -> Iterator[RawItem]:
    """Items of a listing, one by one."""
    return listing.raw_items(
        projection="erp", fov_x_deg=360.0, lat_top_deg=90.0, lat_bottom_deg=-90.0, encoding=label_encoding()
    )


def label_encoding() -> Encoding:
    """File values 0..40 -> ids of nyu40."""
    classes = ((v + 1, v) for v in range(get_label_space("nyu40").num_classes))
    return Encoding(kind="ids", table=((0, IGNORE_INDEX), *classes))


def left_out_of(folder: Path) -> LeftOut:
    """What cannot be read; of the other files, the names are fixed."""
    return left_out(folder, lambda path: True)


def find_scenes(folder: Path) -> dict[int, str]:
    """Scene number -> path relative to the folder, which may hold the scenes or one folder with them."""
    found: dict[int, str] = {}
    for path in sorted([*folder.glob("scene_*"), *folder.glob("Structured3D/scene_*")]):
        match = re.fullmatch(r"scene_(\d{5})", path.name)
        if match and path.is_dir():
            other = found.setdefault(int(match[1]), path.relative_to(folder).as_posix())
            if other != path.relative_to(folder).as_posix():
                raise DataError(f"{path}: {folder / other} is the same scene; keep one of them")
    return found


def _scene_items(
    folder: Path, scene: str, split: str, dataset: Structured3DDataset, skipped: list[tuple[str, str]]
) -> list[ListedItem]:
    """Usable rooms of a scene; the others are added to ``skipped``."""
    items = []
    for item in scan_scene(folder, scene, dataset.light, split=split):
        if split in dataset.unlabelled:
            item = replace(item, label=None)
        problems = [
            (file, why) for file in (item.image, item.label) if file and (why := _problem(folder / file))
        ]
        skipped += problems
        if not problems:
            items.append(item)
    return items


def scan_scene(folder: Path, scene: str, light: str, *, split: str) -> list[ListedItem]:
    """Image and label of every room of a scene, whether or not the files are there."""
    name = Path(scene).name
    items = []
    for room in sorted(p for p in (folder / scene / "2D_rendering").glob("*") if p.is_dir()):
        full = f"{scene}/2D_rendering/{room.name}/panorama/full"
        image, label = f"{full}/rgb_{light}.png", f"{full}/semantic.png"
        items.append(ListedItem(split, f"{name}/{room.name}", name, image, label))
    return items


def _problem(path: Path) -> str | None:
    """Why a PNG cannot be used: Pillow checks the checksums of its parts without decoding it."""
    try:
        with open_image(path) as image:
            image.verify()
    except FileNotFoundError:
        return "missing"
    except UNREADABLE as error:
        return f"broken ({error})"
    return None
