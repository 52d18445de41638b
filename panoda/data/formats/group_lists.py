"""Groups of images that text files name, such as SynPASS's lists of places seen by day and by night.

A list has one name a line: a folder, or a whole path below the data set's folder, with slashes or backslashes
inside, in double quotes or not. An image belongs to the group when a part of its path, or all of it, is
listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from panoda.system.errors import DataError
from panoda.system.files import read_text

UNLISTED = "unlisted"
"""Group of an image that no list names."""


def read_group_lists(folder: Path, lists: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Group -> the names that its list has; a list that is not there names nothing.

    Raises:
        DataError: a list that cannot be read as text, or lies outside the folder.
    """
    names: dict[str, frozenset[str]] = {}
    for group, name in lists.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"group list {name!r} must be a path below {folder}, relative to it")
        try:
            lines = read_text(path).split("\n") if path.is_file() else []
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise DataError(f"{path}: not a readable list of names ({reason})") from error
        names[group] = frozenset(filter(None, map(_name, lines)))
    return names


def _name(line: str) -> str:
    text = line.strip().strip('"').strip().replace("\\", "/").strip("/")
    return PurePosixPath(text).as_posix() if text else ""


def names_of(images: Iterable[str]) -> set[str]:
    """Every name that a list may have for one of the images."""
    return {part for image in images for part in (image, *PurePosixPath(image).parts)}


def group_of(image: str, lists: Mapping[str, frozenset[str]]) -> str:
    """Group of an image, by its path relative to the data set's folder; of several, all joined by +.

    Example:
        >>> group_of("img/fog/val/MAP_1/0.jpg", {"day": frozenset({"MAP_1"}), "night": frozenset()})
        'day'
    """
    parts = names_of([image])
    return "+".join(group for group, names in lists.items() if parts & names) or UNLISTED


def check_group_lists(folder: Path, lists: Mapping[str, str]) -> None:
    """DataError when a list is not there: every image would be in the group 'unlisted'."""
    missing = [str(folder / name) for name in lists.values() if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{', '.join(missing)}: no such file; the groups {', '.join(lists)} are told apart by these "
            "lists: put them there, or take a split without them"
        )
