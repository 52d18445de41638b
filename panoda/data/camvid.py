"""CamVid, the 11-class copies: ``{split}/*.png`` with same-named label files in ``{split}annot/``.

Source: Brostow et al. 2008; label ids 0-10 as in ``panoda.labels``, 11 = unlabelled. Used in place.
"""

from __future__ import annotations

from pathlib import Path

from panoda.config import CamVidDataset
from panoda.data.dataset import DataError, RawItem
from panoda.data.images import is_image_name
from panoda.data.pointer import existing_folder, read_pointer, write_pointer
from panoda.labels import IGNORE_INDEX

VOID_ID = 11


def download(dataset: CamVidDataset, out: Path, *, progress: bool) -> None:
    """Check the layout and write a pointer to the folder.

    Raises:
        DataError: a folder is missing or empty, or images and labels do not match by name.
    """
    folder = existing_folder(dataset.path)
    splits: dict[str, list[str]] = {}
    labels: list[str] = []
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
        splits[split] = [f"{name}/{file}" for file in sorted(images)]
        labels += [f"{name}annot/{file}" for file in sorted(images)]
    write_pointer(out, dataset.path, splits=splits, labels=labels, progress=progress)


def list_items(dataset: CamVidDataset, raw: Path) -> list[RawItem]:
    """Items in order of split and name; the group is the recording, the part before ``_``."""
    pointer = read_pointer(raw)
    items = []
    for split, names in pointer.splits.items():
        for name in names:
            image = pointer.folder / name
            items.append(
                RawItem(
                    id=image.stem,
                    split=split,
                    group=image.stem.split("_")[0],
                    image=image,
                    label=image.parent.with_name(f"{image.parent.name}annot") / image.name,
                    projection="pinhole",
                    fov_x_deg=dataset.fov_x_deg,
                    void_ids=(VOID_ID, IGNORE_INDEX),
                )
            )
    return items


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; CamVid needs {{split}} and {{split}}annot side by side")
    names = {path.name for path in folder.iterdir() if path.is_file() and is_image_name(path)}
    if not names:
        raise DataError(f"{folder}: no images; put the files there or change dataset.splits")
    return names
