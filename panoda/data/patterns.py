"""Path patterns of declared data sets: finding images, and naming the label that belongs to an image.

A pattern is relative to the data set's folder, with ``/`` between names. ``*`` matches within one name,
``{id}`` and ``{group}`` match at least one character of one name and are remembered, ``{id:path}`` matches
across folders; what occurs twice must match the same. ``{group}`` takes as little as it can. The suffix of
an image or label file matches in upper and lower case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from panoda.data.dataset import DataError
from panoda.data.images import is_image_name

_TOKEN = re.compile(r"(\{[^{}]*\}|\*)")
_TOKENS = {"{id}": "[^/]+", "{id:path}": ".+", "{group}": "[^/]+?"}


@dataclass(frozen=True)
class Match:
    """An image that a pattern matched.

    Attributes:
        path: Path relative to the data set's folder.
        id: What ``{id}`` matched; without one, the path without its suffix.
        group: What ``{group}`` matched; None without one.
    """

    path: str
    id: str
    group: str | None


def check_pattern(pattern: str, *, label: bool = False) -> None:
    """Refuse what is not a pattern.

    Args:
        pattern: A pattern of images or labels.
        label: It names labels, which have to follow from the image alone.

    Raises:
        DataError: absolute or upward paths, unknown braces, ``*`` in a label pattern or no ``{id}`` in it.
    """
    parts = pattern.split("/")
    if pattern.startswith("/") or "\\" in pattern or any(part in ("", ".", "..") for part in parts):
        raise DataError(
            f"pattern {pattern!r}: expected a path relative to the data set's folder, with / inside"
        )
    tokens = _TOKEN.findall(pattern)
    unknown = [token for token in tokens if token != "*" and token not in _TOKENS]
    if unknown or re.search(r"[{}]", _TOKEN.sub("", pattern)):
        found = ", ".join(unknown) or "a single brace"
        raise DataError(f"pattern {pattern!r}: {found} is unknown; expected {', '.join(_TOKENS)} or *")
    if label and "*" in tokens:
        raise DataError(f"label pattern {pattern!r}: * is not possible; use {{id}}, {{id:path}} or {{group}}")
    if label and not {"{id}", "{id:path}"} & set(tokens):
        raise DataError(f"label pattern {pattern!r}: without {{id}} all images would have one label")


def find(folder: Path, pattern: str) -> Iterator[Match]:
    """Images below ``folder`` that a pattern matches, in order of their paths within each folder."""
    check_pattern(pattern)
    whole = _compile(pattern)
    for path in _walk(folder, "", pattern.split("/")):
        found = whole.fullmatch(path)
        if found and is_image_name(Path(path)):
            parts = found.groupdict()
            name = parts.get("id") or PurePosixPath(path).with_suffix("").as_posix()
            yield Match(path=path, id=name, group=parts.get("group"))


@dataclass
class LabelFinder:
    """Finds the label of an image; every folder is listed once.

    Attributes:
        folder: The data set's folder.
    """

    folder: Path
    _names: dict[str, dict[str, str]] = field(default_factory=dict)

    def find(self, match: Match, patterns: list[str]) -> str | None:
        """Relative path of the first label that exists; None when none does."""
        for pattern in patterns:
            check_pattern(pattern, label=True)
            if "{group}" in pattern and match.group is None:
                raise DataError(f"label pattern {pattern!r}: the pattern of the images has no {{group}}")
            # One pass, so that braces in a file name are not taken for tokens.
            values = {"{id}": match.id, "{id:path}": match.id, "{group}": match.group or ""}
            wanted = PurePosixPath(_TOKEN.sub(lambda token: values[token.group()], pattern))  # noqa: B023
            parent = wanted.parent.as_posix()
            if parent not in self._names:
                self._names[parent] = {_fold(n): n for n in _files(self.folder / parent)}
            names = self._names[parent]
            found = names.get(_fold(wanted.name))
            if found is not None:
                return (wanted.parent / found).as_posix()
        return None


@lru_cache(maxsize=256)
def _compile(pattern: str) -> re.Pattern[str]:
    suffix = re.search(r"\.[A-Za-z0-9]+$", pattern)
    body = pattern[: suffix.start()] if suffix else pattern
    seen: set[str] = set()
    parts = []
    for piece in _TOKEN.split(body):
        name = piece.strip("{}").split(":")[0]
        if piece == "*":
            parts.append("[^/]*")
        elif piece in _TOKENS:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{_TOKENS[piece]})")
            seen.add(name)
        else:
            parts.append(re.escape(piece))
    return re.compile("".join(parts) + (f"(?i:{re.escape(suffix.group())})" if suffix else ""), re.DOTALL)


def _walk(folder: Path, prefix: str, parts: list[str]) -> Iterator[str]:
    """Relative paths of files that may match; only folders that may hold some are entered."""
    here = folder / prefix
    first, rest = parts[0], parts[1:]
    if "{id:path}" in first:
        seen: set[str] = set()
        for parent, folders, names in os.walk(here, followlinks=True):
            seen.add(os.path.realpath(parent))
            folders[:] = sorted(n for n in folders if os.path.realpath(os.path.join(parent, n)) not in seen)
            below = Path(parent).relative_to(folder).as_posix()
            yield from (name if below == "." else f"{below}/{name}" for name in sorted(names))
        return
    if not rest:
        yield from (f"{prefix}{name}" for name in sorted(_files(here)))
        return
    if not _TOKEN.search(first):
        if (here / first).is_dir():
            yield from _walk(folder, f"{prefix}{first}/", rest)
        return
    one = re.compile(
        "".join("[^/]*" if _TOKEN.fullmatch(piece) else re.escape(piece) for piece in _TOKEN.split(first)),
        re.DOTALL,
    )
    for name in sorted(entry.name for entry in _entries(here) if entry.is_dir()):
        if one.fullmatch(name):
            yield from _walk(folder, f"{prefix}{name}/", rest)


def _files(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_file()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _fold(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"
