"""What stage download writes for a folder used in place: where it is, its files, and the items found in it.

``source.json`` names the folder and ``files.csv`` the size and hash of every file used: what a data version
control system sees of it, written and read line by line. ``items.csv`` keeps every item and ``facts.json`` what
the data set's adapter wants to remember, so that stage preprocess depends on the folder ``data/raw/<role>`` alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from panoda.data.formats.dataset import RawItem
from panoda.system.errors import DataError
from panoda.system.files import sha256_file, write_json
from panoda.system.progress import track

POINTER, FILES, ITEMS, FACTS = "source.json", "files.csv", "items.csv", "facts.json"


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


def existing_folder(path: str) -> Path:
    """The user's folder; DataError when there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{path}: no such folder (looked for {folder.resolve()}); set dataset.path in params.yaml, "
            "absolute, relative to the project root, or from ~ on"
        )
    return folder


def write_listing(
    out: Path,
    path: str,
    items: Sequence[ListedItem],
    *,
    facts: dict[str, Any] | None = None,
    more_files: Sequence[str] = (),
    progress: bool,
) -> None:
    """Hash the files of the items and write all four files into an existing folder.

    Args:
        path: The user's folder as given in params.yaml.
        facts: JSON values that the adapter needs again.
        more_files: Paths relative to the user's folder of other files that the result depends on.
    """
    files = {*more_files, *(name for item in items for name in (item.image, item.label) if name)}
    folder = existing_folder(path)
    with (out / FILES).open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("path", "bytes", "sha256"))
        for name in track(sorted(files), "hashing", enabled=progress):
            rows.writerow((name, (folder / name).stat().st_size, sha256_file(folder / name)))
    write_json(out / POINTER, {"path": _portable(path)})
    with (out / ITEMS).open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, _FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(vars(item) for item in items)
    write_json(out / FACTS, facts or {})


def read_listing(raw: Path) -> Listing:
    """Read what ``write_listing`` wrote.

    Raises:
        DataError: unreadable, or the folder changed since stage download.
    """
    folder, path = _unchanged_folder(raw), raw / FACTS
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


def _unchanged_folder(raw: Path) -> Path:
    """The folder that ``source.json`` points to, after a check that it still holds files of the same sizes.

    Raises:
        DataError: no readable pointer, or the folder changed since it was written.
    """
    path = raw / POINTER
    changed, missing, example = 0, 0, ""
    try:
        folder = existing_folder(json.loads(path.read_text(encoding="utf-8"))["path"])
        with (raw / FILES).open(encoding="utf-8", newline="") as stream:
            for known in csv.DictReader(stream):
                file = folder / known["path"]
                size = file.stat().st_size if file.is_file() else None
                if size != int(known["bytes"]):
                    changed, missing = changed + 1, missing + (size is None)
                    example = example or known["path"]
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run stage download again") from error
    if changed:
        raise DataError(
            f"{folder}: {changed} files changed since stage download ({missing} of them missing), "
            f"such as {folder / example}; restore them, or run stage download again"
        )
    return folder


def _portable(path: str) -> str:
    """A relative path stays relative; an absolute one becomes so inside the project."""
    given = Path(path).expanduser()
    root = Path.cwd()
    return str(given.relative_to(root) if given.is_absolute() and given.is_relative_to(root) else given)
