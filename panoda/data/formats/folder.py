"""A plain folder of unlabelled panoramas of any sizes, used in place.

Every image is a full circle in width. Crop and ignore band are the same share of every image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from panoda.config import FolderDataset
from panoda.data.formats.browse import left_out, predicted_among, warn_left_out
from panoda.data.formats.dataset import RawItem
from panoda.data.formats.images import IMAGE_SUFFIXES
from panoda.data.formats.listing import ListedItem, existing_folder, read_listing, write_listing
from panoda.data.formats.patterns import glob
from panoda.system.errors import DataError


def download(dataset: FolderDataset, out: Path, *, progress: bool) -> None:
    """Find the images of every split and write a pointer to the folder.

    Raises:
        DataError: no such folder, an empty split, or splits other than test that share images.
    """
    folder = existing_folder(dataset.path)
    splits = {split: _find(folder, patterns, split) for split, patterns in dataset.splits.items()}
    for one, two in combinations((name for name in splits if name != "test"), 2):
        shared = set(splits[one]) & set(splits[two])
        if shared:
            raise DataError(
                f"{folder / min(shared)}: in splits {one} and {two}; make their patterns disjoint"
            )
    taken = {name for names in splits.values() for name in names}
    warn_left_out(left_out(folder, taken.__contains__))
    items = [
        ListedItem(
            split=split,
            id=Path(name).with_suffix("").as_posix(),
            group=Path(name).parent.as_posix(),
            image=name,
            label=None,
        )
        for split, names in splits.items()
        for name in names
    ]
    write_listing(out, dataset.path, items, progress=progress)


def list_items(dataset: FolderDataset, raw: Path) -> Iterator[RawItem]:
    """Items in order of split and path; the group is the subfolder."""
    return read_listing(raw).raw_items(
        projection="erp",
        fov_x_deg=360.0,
        lat_top_deg=dataset.lat_top_deg,
        lat_bottom_deg=dataset.lat_bottom_deg,
        crop_top=dataset.crop_top,
        crop_bottom=dataset.crop_bottom,
        ignore_bottom=dataset.ignore_bottom,
    )


def _find(folder: Path, patterns: list[str], split: str) -> list[str]:
    try:
        found = {path for pattern in patterns for path in glob(folder, pattern)}
    except DataError as error:
        raise DataError(f"split {split}: {error}") from error
    found -= predicted_among(folder, found)
    if not found:
        raise DataError(
            f"{folder}: split {split} is empty: no image matches {', '.join(patterns)} "
            f"(images end in {', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return sorted(found)
