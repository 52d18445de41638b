"""What stage download writes for a folder used in place: the pointer, and the items found in the folder.

``source.json`` is the pointer (``panoda.data.pointer``); ``items.json`` keeps every item and what the data
set's adapter wants to remember, so that stage preprocess depends on the folder ``data/raw/<role>`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from panoda.data.dataset import DataError, RawItem
from panoda.data.pointer import read_pointer, write_pointer
from panoda.files import write_json

ITEMS = "items.json"


@dataclass(frozen=True)
class ListedItem:
    """An image as it was found.

    Attributes:
        split: Our split name.
        id: Name that is unique within the split.
        group: What it has in common with others.
        image: Image path relative to the folder.
        label: Label path relative to the folder, or None.
        fov_x_deg: Horizontal field of view in degrees, where it is known of this image.
    """

    split: str
    id: str
    group: str
    image: str
    label: str | None
    fov_x_deg: float | None = None

    def raw_item(self, folder: Path, **camera: Any) -> RawItem:
        """The item below ``folder``, with the fields of ``RawItem`` on its camera and its label encoding."""
        label = None if self.label is None else folder / self.label
        return RawItem(self.id, self.split, self.group, folder / self.image, label, **camera)


@dataclass(frozen=True)
class Listing:
    """What ``write_listing`` wrote.

    Attributes:
        folder: The folder used in place.
        items: Every item, in the order in which they were written.
        facts: What the adapter remembered.
    """

    folder: Path
    items: list[ListedItem]
    facts: dict[str, Any]


def write_listing(
    out: Path,
    path: str,
    items: Sequence[ListedItem],
    *,
    facts: dict[str, Any],
    more_files: Sequence[str] = (),
    progress: bool,
) -> None:
    """Hash the files of the items and write pointer and listing.

    Args:
        out: Existing folder.
        path: The user's folder as given in params.yaml.
        items: What was found.
        facts: JSON values that the adapter needs again.
        more_files: Paths relative to the folder of other files that the result depends on.
        progress: Show a progress bar.
    """
    splits: dict[str, list[str]] = {}
    for item in items:
        splits.setdefault(item.split, []).append(item.image)
    labels = [item.label for item in items if item.label is not None]
    write_pointer(out, path, splits=splits, labels=[*labels, *more_files], progress=progress)
    write_json(out / ITEMS, {"facts": facts, "items": [asdict(item) for item in items]})


def read_listing(raw: Path) -> Listing:
    """Read pointer and listing.

    Raises:
        DataError: unreadable, or the folder changed since stage download.
    """
    pointer = read_pointer(raw)
    path = raw / ITEMS
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        items = [ListedItem(**item) for item in value["items"]]
        return Listing(folder=pointer.folder, items=items, facts=value["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run stage download again") from error


def check_ids(items: Sequence[ListedItem]) -> None:
    """DataError when two images of a split have one id."""
    first: dict[tuple[str, str], str] = {}
    for item in items:
        other = first.setdefault((item.split, item.id), item.image)
        if other != item.image:
            raise DataError(
                f"{item.image}: split {item.split} already has id {item.id!r} ({other}); remove one of "
                "them, or tell them apart in the pattern with {group} or {id:path}"
            )
