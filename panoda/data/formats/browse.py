"""What lies below a folder, links followed; and what looks like an image there but is left out.

Whoever looks for files in a user's folder does it through ``walk``, so that all commands see the same ones.
What cannot be read or is not taken is a ``LeftOut``: counted and named, by cause.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from panoda.data.formats.images import IMAGE_SUFFIXES, UNSTITCHED

LIKE_IMAGES = (
    IMAGE_SUFFIXES
    | UNSTITCHED
    | frozenset(
        ".arw .avif .cr2 .cr3 .dng .exr .gif .hdr .heic .heif .j2k .jfif .jp2 .jpe .jpf .jpx .jxl .nef "
        ".orf .pbm .pcx .pgm .pnm .ppm .psd .qoi .raf .rw2 .sgi .tga".split()
    )
)
"""Lower-case suffixes of image files, those that are not read included."""

DANGLING = "links to nothing"
LOOP = "links to a folder above them"
AGAIN = "folders that are read already by another name"
UNREADABLE = "folders that cannot be read"
SPECIAL = "neither files nor folders"
NAME = "names that are not UTF-8"
HIDDEN = "hidden, or in a hidden folder"
SUFFIX = f"images of a kind that is not read (expected {', '.join(sorted(IMAGE_SUFFIXES))})"
FISHEYE = "fisheye pictures, to be stitched with the camera's program first"
UNMATCHED = "images that no pattern or list names"
WRITTEN = "written by `panoda predict`"

PREDICTED_FOLDERS = ("labels", "confidence", "overlays")
"""Where ``panoda predict`` writes pictures, beside ``MANIFEST``."""
MANIFEST, PREDICTIONS = "manifest.json", "panoda-predictions-"
"""The file that says so, and how the name of its format begins."""

SHOWN = 3
"""Examples of one cause in a message."""

log = logging.getLogger("panoda")

Enter = Callable[[str], bool]
"""Whether to read a folder, by its path relative to the one that is walked."""


@dataclass
class LeftOut:
    """What is not taken from a folder.

    Attributes:
        causes: Cause (a constant of this module, or other words) -> paths relative to the folder, or names.
    """

    folder: Path
    causes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, cause: str, *names: str) -> None:
        """Note what a cause leaves out."""
        if names:
            self.causes.setdefault(cause, []).extend(names)

    def lines(self) -> list[str]:
        """One line for each cause: how many, and the first few."""
        return [
            f"left out: {cause} ({len(names)}): {', '.join(map(self._shown, names[:SHOWN]))}"
            f"{', ...' if len(names) > SHOWN else ''}"
            for cause, names in self.causes.items()
        ]

    def _shown(self, name: str) -> str:
        path = str(self.folder / name)
        gone = os.path.islink(path) and not os.path.exists(path)
        return f"{path} points to {os.readlink(path)}" if gone else path


def walk(folder: Path, enter: Enter = lambda path: True) -> Iterator[tuple[str, str]]:
    """Files below a folder, and what cannot be read there.

    Links are followed. A folder that several names lead to is read once: by its own name if it lies below
    ``folder``, else by the first link to it.

    Yields:
        (path relative to ``folder``, "") of every file; (path, cause) of what cannot be read.

    Raises:
        OSError: ``folder`` itself cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        linked = not folders
        here = links.pop(0) if linked else folders.pop()
        try:
            status = os.stat(folder / here)
            if linked and _is_above(folder / here):
                yield here, LOOP
                continue
            if (status.st_dev, status.st_ino) in seen:
                yield here, AGAIN
                continue
            with os.scandir(folder / here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            if not here:
                raise
            yield here, UNREADABLE
            continue
        seen.add((status.st_dev, status.st_ino))
        below: list[str] = []
        for entry in entries:
            path = f"{here}/{entry.name}" if here else entry.name
            kind = _kind(entry)
            if kind != "folder":
                yield path.encode(errors="backslashreplace").decode(), kind
            elif enter(path):
                (links if entry.is_symlink() else below).append(path)
        folders += reversed(below)


def images_below(
    folder: Path, enter: Enter = lambda path: True, *, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> tuple[list[Path], LeftOut]:
    """All images below a folder (or files of other suffixes), sorted, and what else looks like one.

    What ``panoda predict`` wrote there is not taken.
    """
    left, found = LeftOut(folder), list[str]()
    for path, cause in _image_like(folder, enter, suffixes):
        if cause:
            left.add(cause, path)
        else:
            found.append(path)
    written = predicted_among(folder, found)
    left.add(WRITTEN, *(path for path in found if path in written))
    return sorted(folder / path for path in found if path not in written), left


def images_among(
    paths: Sequence[Path], *, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> tuple[list[Path], LeftOut]:
    """The images among files (or those of other suffixes), and what else looks like one, as ``images_below``."""
    left, found = LeftOut(Path()), []
    written = predicted_among(Path(), map(str, paths))
    for path in paths:
        cause = WRITTEN if str(path) in written else _cause(path.name, suffixes)
        if cause:
            left.add(cause, str(path))
        elif cause == "":
            found.append(path)
    return found, left


def predicted_among(folder: Path, paths: Iterable[str]) -> set[str]:
    """Those of some paths relative to a folder that ``panoda predict`` wrote."""
    parents: dict[str, list[str]] = {}
    for path in paths:
        parents.setdefault(os.path.dirname(path), []).append(path)
    # A folder that was named itself is wanted.
    written = [inside for parent, inside in parents.items() if parent and _is_predicted(folder / parent)]
    return {path for inside in written for path in inside}


def _is_predicted(folder: Path) -> bool:
    """Whether a folder is one that ``panoda predict`` writes pictures into."""
    if folder.name not in PREDICTED_FOLDERS:
        return False
    try:
        return PREDICTIONS.encode() in (folder.parent / MANIFEST).read_bytes()
    except OSError:
        return False


def left_out(folder: Path, taken: Callable[[str], bool]) -> LeftOut:
    """What looks like an image below a folder and is not ``taken``, by its path relative to it."""
    left, rest = LeftOut(folder), list[str]()
    for path, cause in _image_like(folder):
        if cause not in ("", HIDDEN, SUFFIX) or not taken(path):
            left.add(cause, path) if cause else rest.append(path)
    written = predicted_among(folder, rest)
    left.add(WRITTEN, *(path for path in rest if path in written))
    left.add(UNMATCHED, *(path for path in rest if path not in written))
    return left


def warn_left_out(left: LeftOut) -> None:
    """Log what is left out."""
    for line in left.lines():
        log.warning(line)


def _image_like(
    folder: Path, enter: Enter = lambda path: True, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> Iterator[tuple[str, str]]:
    """(path, "") of images; (path, cause) of what looks like one, or may hold some, and cannot be taken."""
    for path, cause in walk(folder, enter):
        looks = _cause(path, suffixes)
        if cause in (DANGLING, LOOP, AGAIN, UNREADABLE, NAME) or (cause and looks is not None):
            yield path, cause
        elif looks is not None:
            yield path, looks


def _cause(path: str, suffixes: frozenset[str]) -> str | None:
    """Why what looks like an image is not taken, by its name; empty for one that is, None for other files."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in LIKE_IMAGES and suffix not in suffixes:
        return None
    if any(part.startswith(".") for part in path.split("/")):
        return HIDDEN
    if suffix in suffixes:
        return ""
    return FISHEYE if suffix in UNSTITCHED else SUFFIX


def _kind(entry: os.DirEntry[str]) -> str:
    """folder, "" for a file, or what is wrong with it."""
    try:
        entry.name.encode()
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return ""
    except UnicodeEncodeError:
        return NAME
    except OSError:  # a link to itself
        return DANGLING
    return DANGLING if entry.is_symlink() else SPECIAL


def _is_above(link: Path) -> bool:
    """Whether a link leads to the folder where it lies, or to one above that."""
    return Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))
