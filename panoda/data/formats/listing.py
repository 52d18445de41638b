"""What stage download writes for a folder used in place: the pointer, and the items found in the folder.

``source.json`` and ``files.csv`` are the pointer (``panoda.data.formats.pointer``); ``items.csv`` keeps every item
and ``facts.json`` what the data set's adapter wants to remember, so that stage preprocess depends on the
folder ``data/raw/<role>`` alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from panoda.data.formats.dataset import RawItem
from panoda.data.formats.pointer import read_pointer, write_pointer
from panoda.system.errors import DataError
from panoda.system.files import write_json

ITEMS = "items.csv"
FACTS = "facts.json"


@dataclass(frozen=True)
class ListedItem:
    """An image as it was found.

    Attributes:
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


_FIELDS = [field.name for field in fields(ListedItem)]


@dataclass(frozen=True)
class Listing:
    """What ``write_listing`` wrote, or the like.

    Attributes:
        folder: The folder used in place.
    """

    folder: Path
    items: Sequence[ListedItem]
    facts: dict[str, Any]

    def raw_items(self, *, fov_x_deg: float, **camera: Any) -> Iterator[RawItem]:
        """The items with the fields of ``RawItem`` on their camera and label encoding.

        ``fov_x_deg`` is that of items which have none of their own.
        """
        for item in self.items:
            yield RawItem(
                item.id,
                item.split,
                item.group,
                image=self.folder / item.image,
                label=None if item.label is None else self.folder / item.label,
                fov_x_deg=item.fov_x_deg or fov_x_deg,
                **camera,
            )


def write_listing(
    out: Path,
    path: str,
    items: Sequence[ListedItem],
    *,
    facts: dict[str, Any] | None = None,
    more_files: Sequence[str] = (),
    progress: bool,
) -> None:
    """Hash the files of the items and write pointer and listing into an existing folder.

    Args:
        path: The user's folder as given in params.yaml.
        facts: JSON values that the adapter needs again.
        more_files: Paths relative to the user's folder of other files that the result depends on.
    """
    files = {*more_files, *(name for item in items for name in (item.image, item.label) if name)}
    write_pointer(out, path, sorted(files), progress=progress)
    with (out / ITEMS).open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, _FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(vars(item) for item in items)
    write_json(out / FACTS, facts or {})


def read_listing(raw: Path) -> Listing:
    """Read pointer and listing.

    Raises:
        DataError: unreadable, or the folder changed since stage download.
    """
    folder, path = read_pointer(raw), raw / FACTS
    items = []
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        path = raw / ITEMS
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                fov, label = row.pop("fov_x_deg"), row.pop("label") or None
                items.append(ListedItem(**row, label=label, fov_x_deg=float(fov) if fov else None))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run stage download again") from error
    return Listing(folder, items, facts)


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
