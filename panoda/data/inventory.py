"""Which files of a declared data set lie in a folder, by the patterns of its declaration.

Nothing is opened, and what does not pair is listed, not refused: `data check` reports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from panoda.data.dataset import DataError, RawItem
from panoda.data.declaration import Declaration, SplitFiles
from panoda.data.images import is_image_name

_TOKENS = {"{id}": "(?P<id>[^/]+)", "{id:path}": "(?P<id>.+)", "{group}": "(?P<group>[^/]+)", "*": "[^/]*"}
_TOKEN = re.compile(r"(\{id:path\}|\{id\}|\{group\}|\*)")


@dataclass
class Inventory:
    """The files of a data set.

    Attributes:
        items: Every image, in order of split and path.
        without_label: (split, image) of labelled splits where no label pattern finds a file.
        without_image: (split, label) that belong to no image.
    """

    items: list[RawItem] = field(default_factory=list)
    without_label: list[tuple[str, Path]] = field(default_factory=list)
    without_image: list[tuple[str, Path]] = field(default_factory=list)


def take_inventory(declaration: Declaration, folder: Path) -> Inventory:
    """Find images and labels of every split.

    Raises:
        DataError: no such folder, or an unreadable list file.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; `panoda data get {declaration.name}` says how to obtain the data "
            "set, "
            "--path names the folder where it lies"
        )
    found = Inventory()
    for name, split in declaration.splits.items():
        _add_split(found, declaration, folder, name, split)
    return found


def has_images(folder: Path, split: SplitFiles) -> bool:
    """Whether any image of a split lies in the folder; stops at the first."""
    if split.list_file is not None:
        return (folder / split.list_file).is_file()
    return any(True for pattern in split.images for _ in _matches(folder, pattern))


def _add_split(
    found: Inventory, declaration: Declaration, folder: Path, name: str, split: SplitFiles
) -> None:
    used: set[str] = set()
    listed = _listed(folder, split, name) if split.list_file is not None else _matched(folder, split)
    for image, label, group, id_ in listed:
        if label is not None and (folder / label).is_file():
            used.add(label)
        elif label is not None or split.labels:
            found.without_label.append((name, folder / image))
            label = None
        found.items.append(
            RawItem(
                id=id_,
                split=name,
                group=group or declaration.name,
                image=folder / image,
                label=folder / label if label is not None else None,
                projection=declaration.projection,
                fov_x_deg=declaration.fov_x_deg,
            )
        )
    every = {path for pattern in split.labels for path, _ in _matches(folder, pattern)}
    found.without_image += [(name, folder / path) for path in sorted(every - used)]


def _matched(folder: Path, split: SplitFiles) -> Iterator[tuple[str, str | None, str, str]]:
    """(image, label, group, id) of a split with patterns."""
    images = {path: match for pattern in split.images for path, match in _matches(folder, pattern)}
    for path in sorted(images):
        parts = images[path].groupdict()
        id_ = parts.get("id") or os.path.splitext(path)[0]
        label = next((found for p in split.labels if (found := _label(folder, p, parts, id_))), None)
        group = parts.get("group") or os.path.dirname(id_)
        yield path, label, group, f"{parts['group']}/{id_}" if parts.get("group") else id_


def _label(folder: Path, pattern: str, parts: dict[str, str], id_: str) -> str | None:
    name = pattern.replace("{id:path}", id_).replace("{id}", id_).replace("{group}", parts.get("group", ""))
    if (folder / name).is_file():
        return name
    return None


def _listed(folder: Path, split: SplitFiles, name: str) -> Iterator[tuple[str, str | None, str, str]]:
    """(image, label, group, id) of a split with a list file."""
    assert split.list_file is not None
    path = folder / split.list_file
    try:
        parquet = path.suffix.lower() == ".parquet"
        table = pd.read_parquet(path) if parquet else pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table.fillna("").astype(str)
        if "split" in table:
            table = table[table["split"] == name]
        rows = table.to_dict("records")
        for row in rows:
            image, label = row["image"].strip(), row.get("label", "").strip() or None
            group = row.get("group", "").strip() or os.path.dirname(image)
            yield image, label, group, os.path.splitext(image)[0]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV or parquet list ({error})") from error
    except KeyError as error:
        raise DataError(f"{path}: a list needs a column image; found {', '.join(table.columns)}") from error


def _matches(folder: Path, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Files below ``folder`` that a pattern matches, with the match; suffixes in any case."""
    whole = _compile(pattern)
    fixed = os.path.dirname(_TOKEN.split(pattern)[0])
    depth = None if "{id:path}" in pattern else pattern.count("/")
    for parent, folders, names in os.walk(folder / fixed, followlinks=True):
        below = os.path.relpath(parent, folder)
        prefix = "" if below == "." else f"{below}/"
        folders.sort()
        if depth is not None and prefix.count("/") >= depth:
            folders.clear()
        for name in sorted(names):
            match = whole.fullmatch(prefix + name)
            if match and is_image_name(Path(name)):
                yield prefix + name, match


def _compile(pattern: str) -> re.Pattern[str]:
    body, suffix = os.path.splitext(pattern)
    seen: set[str] = set()
    text = ""
    for piece in _TOKEN.split(body):
        name = piece.strip("{}").split(":")[0]
        if piece in _TOKENS and piece != "*" and name in seen:
            text += f"(?P={name})"
            continue
        seen |= {name} if piece in _TOKENS else set()
        text += _TOKENS.get(piece, re.escape(piece))
    return re.compile(f"{text}(?i:{re.escape(suffix)})")
