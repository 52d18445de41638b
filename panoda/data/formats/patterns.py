"""Path patterns of declared data sets: finding images, and naming the label that belongs to an image.

A pattern is relative to the data set's folder, with ``/`` between names. ``*`` matches within one name,
``{id}`` and ``{group}`` match at least one character of one name and are remembered, ``{id:path}`` matches
across folders; what occurs twice must match the same. ``{group}`` takes as little as it can. The suffix of
an image or label file matches in upper and lower case. Hidden files never match, hidden folders only where
the pattern writes the dot.

Data sets of kind folder have glob patterns instead (``glob``): ``*``, ``?`` and ``[...]`` within one name,
``**`` for any folders.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from panoda.data.formats.browse import Enter, walk
from panoda.data.formats.images import is_image_name
from panoda.system.errors import DataError

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
    """Refuse what is not a pattern, of labels if ``label``: these have to follow from the image alone.

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
    *parents, _ = pattern.split("/")
    deep = next((i for i, part in enumerate(parents) if "{id:path}" in part), len(parents))
    names = [_one_name(part) for part in parents[:deep]]
    for path in _files_below(folder, _reach(names, deep="{id:path}" in pattern)):
        found = match(pattern, path)
        if found is not None and is_image_name(Path(path)):
            yield found


def match(pattern: str, path: str) -> Match | None:
    """What a pattern makes of a path relative to the data set's folder; None when it does not match."""
    found = _compile(pattern).fullmatch(path)
    if found is None:
        return None
    parts = found.groupdict()
    name = parts.get("id") or PurePosixPath(path).with_suffix("").as_posix()
    return Match(path=path, id=name, group=parts.get("group"))


def glob(folder: Path, pattern: str) -> Iterator[str]:
    """Relative paths of the images below ``folder`` that a glob pattern matches.

    Raises:
        DataError: a path that is absolute or leads upwards, or ``**`` within a name.
    """
    parts = pattern.split("/")
    if "\\" in pattern or any(part in ("", ".", "..") or ("**" in part and part != "**") for part in parts):
        raise DataError(f"{pattern!r} is not a pattern relative to {folder}, with / inside")
    whole = [None if part == "**" else _glob_name(part) for part in _fold(pattern).split("/")]
    names = []  # of folders, until the first **, below which there may be any
    for part in whole[:-1]:
        if part is None:
            break
        names.append(part)
    for path in _files_below(folder, _reach(names, deep=None in whole)):
        if is_image_name(Path(path)) and _fits(whole, _fold(path).split("/")):
            yield path


@dataclass
class LabelFinder:
    """Finds the label of an image; every folder is listed once."""

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
                files = _files_below(self.folder / parent, lambda path: False)
                self._names[parent] = {_fold(n): n for n in files}
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


def _one_name(part: str) -> re.Pattern[str]:
    """Names of folders that may match one part of a pattern."""
    pieces = ("[^/]*" if _TOKEN.fullmatch(piece) else re.escape(piece) for piece in _TOKEN.split(part))
    return re.compile(_visible(part) + "".join(pieces), re.DOTALL)


def _glob_name(part: str) -> re.Pattern[str]:
    return re.compile(_visible(part) + fnmatch.translate(part))


def _visible(part: str) -> str:
    """Regular expression before a name: hidden ones must be asked for."""
    return "" if part.startswith(".") else r"(?!\.)"


def _fits(parts: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    """Whether the names of a path fit the parts of a glob pattern; None stands for any folders."""
    if not parts:
        return not names
    if parts[0] is None:
        return any(_fits(parts[1:], names[i:]) for i in range(len(names) + 1))
    return bool(names) and bool(parts[0].fullmatch(names[0])) and _fits(parts[1:], names[1:])


def _reach(names: Sequence[re.Pattern[str]], *, deep: bool) -> Enter:
    """Folders that may hold what matches: those of ``names``; ``deep``: below them all but hidden ones."""

    def enter(path: str) -> bool:
        place, name = path.count("/"), path.rpartition("/")[2]
        if place < len(names):
            return bool(names[place].fullmatch(name))
        return deep and not name.startswith(".")

    return enter


def _files_below(folder: Path, enter: Enter) -> Iterator[str]:
    return (path for path, cause in walk(folder, enter) if not cause) if folder.is_dir() else iter(())


def _fold(path: str) -> str:
    """A path, or its pattern, with the suffix in lower case."""
    stem, dot, suffix = path.rpartition(".")
    return f"{stem}{dot}{suffix.lower()}" if dot and "/" not in suffix else path
