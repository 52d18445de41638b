"""CamVid, the 11-class copies: ``{split}/*.png`` with same-named label files in ``{split}annot/``.

Source: Brostow et al. 2008; label ids 0-10 as in ``panoda.labels``, 11 = unlabelled. Used in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from panoda.config import CamVidDataset
from panoda.data.formats.browse import left_out, warn_left_out
from panoda.data.formats.dataset import RawItem
from panoda.data.formats.listing import ListedItem, read_listing, write_listing
from panoda.data.formats.patterns import glob
from panoda.data.formats.pointer import existing_folder
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError

VOID_ID = 11


def download(dataset: CamVidDataset, out: Path, *, progress: bool) -> None:
    """Check the layout and write a pointer to the folder.

    Raises:
        DataError: a folder is missing or empty, or images and labels do not match by name.
    """
    folder = existing_folder(dataset.path)
    items: list[ListedItem] = []
    for split, name in dataset.splits.items():
        images, annotations = _names(folder / name), _names(folder / f"{name}annot")
        for unmatched, where, other in (
            (images - annotations, name, f"{name}annot"),
            (annotations - images, f"{name}annot", name),
        ):
            if unmatched:
                raise DataError(
                    f"{folder / where / min(unmatched)}: no file of this name in {folder / other} "
                    f"({len(unmatched)} such files); add it or remove its partner"
                )
        items += [
            ListedItem(
                split=split,
                id=Path(file).stem,
                group=Path(file).stem.split("_")[0],
                image=f"{name}/{file}",
                label=f"{name}annot/{file}",
            )
            for file in sorted(images)
        ]
    write_listing(out, dataset.path, items, progress=progress)


def list_items(dataset: CamVidDataset, raw: Path) -> Iterator[RawItem]:
    """Items in order of split and name; the group is the recording, the part before ``_``."""
    return read_listing(raw).raw_items(
        projection="pinhole", fov_x_deg=dataset.fov_x_deg, void_ids=(VOID_ID, IGNORE_INDEX)
    )


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; CamVid needs {{split}} and {{split}}annot side by side")
    names = set(glob(folder, "*"))
    warn_left_out(left_out(folder, names.__contains__))
    if not names:
        raise DataError(f"{folder}: no images; put the files there or change dataset.splits")
    return names
