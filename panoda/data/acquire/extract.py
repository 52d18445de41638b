"""The entries of a stranger's archive into a folder: nothing leaves it, bad entries are kept out and counted.

No link is ever created: an entry that links to a file of the same archive becomes that file. Owners, modes
and times of the entries are not applied.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from panoda.data.acquire.archives import Damaged, Entry, open_archive
from panoda.system.errors import DataError

MARKERS = ".unpacked"
"""Folder of the markers, within the destination."""
SMALL_ENTRY = 1 << 20
"""Entries up to this size are not held to the ratio: they harm nobody, and all are held to the total."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class BadEntry:
    """An entry that was kept out: its name as the archive gives it, and why."""

    name: str
    reason: str


@dataclass
class Extraction:
    """What is being unpacked: the folder it goes to, what is there, and how much more there may be.

    Attributes:
        folder: Where the entries go; exists and is empty.
        limit: Most unpacked bytes.
        ratio: Unpacked to packed size, of an entry above ``SMALL_ENTRY``.
        seen: Names so far.
        links: Links by name, looked at when all files are there.
        bad: Entries kept out.
        files: Files unpacked.
        bytes: Their size.
    """

    folder: Path
    limit: int
    ratio: float
    seen: set[str] = field(default_factory=set)
    links: dict[str, Entry] = field(default_factory=dict)
    bad: list[BadEntry] = field(default_factory=list)
    files: int = 0
    bytes: int = 0


def extract(archive: Path, out: Extraction, *, max_entries: int) -> None:
    """Unpack all entries.

    Raises:
        DataError: not an archive, cut off or damaged as a whole, or beyond the limits.
        OSError: disk full.
    """
    free = shutil.disk_usage(out.folder).free
    try:
        with open_archive(archive) as opened:
            if opened.unpacked_bytes is not None:
                _require_total(archive, opened.unpacked_bytes, out, free)
            for count, entry in enumerate(opened.entries()):
                if count >= max_entries:
                    raise DataError(f"{archive}: more than {max_entries} entries; this is no data set")
                reason = _take(archive, entry, out, free)
                if reason:
                    out.bad.append(BadEntry(entry.name, reason))
    except Damaged as error:
        raise DataError(
            f"{archive}: {error}; nothing was unpacked: remove the archive and fetch it again"
        ) from error
    _resolve_links(out)


def _take(archive: Path, entry: Entry, out: Extraction, free: int) -> str | None:
    """Unpack one entry; returns why it is kept out, or None."""
    parts, reason = _safe_parts(entry.name)
    if reason:
        return reason
    if entry.kind == "folder":
        return _make_folder(out.folder.joinpath(*parts)) if parts else None
    name = "/".join(parts)
    if not parts:
        return "no name"
    if entry.kind == "other":
        return f"a {entry.what}, not a file"
    if name in out.seen:
        return "a second entry of that name"
    out.seen.add(name)
    if entry.kind == "link":
        out.links[name] = entry
        return None
    if entry.size > SMALL_ENTRY and entry.packed is not None and entry.size > out.ratio * entry.packed:
        return f"{entry.size} bytes packed into {entry.packed}: more than {out.ratio:g} to 1"
    _require_total(archive, out.bytes + entry.size, out, free)
    return _write(entry, out.folder.joinpath(*parts), out)


def _write(entry: Entry, path: Path, out: Extraction) -> str | None:
    """Write the bytes of a file entry; a damaged one leaves nothing."""
    reason = _make_folder(path.parent)
    if reason:
        return reason
    count = 0
    try:
        with path.open("xb") as target, entry.open() as source:
            while data := source.read(CHUNK):
                count += len(data)
                if count > entry.size:
                    raise Damaged(f"longer than the {entry.size} bytes announced")
                target.write(data)
        if count != entry.size:
            raise Damaged(f"{count} bytes, announced were {entry.size}")
    except FileExistsError:
        return "in place of a folder of that name"
    except Damaged as error:
        path.unlink(missing_ok=True)
        if entry.fatal:
            raise
        return str(error)
    except OSError as error:
        if not _is_name_problem(error):
            raise
        return f"not a possible file name ({error.strerror})"
    out.files += 1
    out.bytes += count
    return None


def _make_folder(path: Path) -> str | None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return "lies in a folder that is a file"
    except OSError as error:
        if not _is_name_problem(error):
            raise
        return f"not a possible file name ({error.strerror})"
    return None


def _is_name_problem(error: OSError) -> bool:
    return error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def _safe_parts(name: str) -> tuple[list[str], str | None]:
    """The parts of an entry's name below the folder, and why it is refused (or None).

    Backslashes count as separators: some programs write them.
    """
    plain = name.replace("\\", "/")
    if "\0" in name:
        return [], "a name with a zero byte"
    if plain.startswith("/") or plain[1:2] == ":":
        return [], "an absolute name"
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if ".." in parts:
        return [], "leaves the folder"
    if parts and parts[0] == MARKERS:
        return [], f"{MARKERS} is kept for markers"
    try:
        "/".join(parts).encode()
    except UnicodeEncodeError:
        return [], "a name that is no text"
    return parts, None


def _require_total(archive: Path, total: int, out: Extraction, free: int) -> None:
    if total > out.limit:
        raise DataError(
            f"{archive}: would unpack to {total} bytes or more, allowed are {out.limit} "
            f"({out.ratio:g} times its size at most); if it is what it should be, raise max_ratio or "
            "max_bytes"
        )
    if total > free:
        raise DataError(
            f"{archive}: unpacks to {total / 1e9:.2f} GB or more, but only {free / 1e9:.2f} GB are free in "
            f"{out.folder.parent}; make room or choose a folder on another disk"
        )


# --- links ---------------------------------------------------------------------------------------------


def _resolve_links(out: Extraction) -> None:
    """Links to files of the archive become those files; all others are kept out."""
    for name, entry in out.links.items():
        target, reason = _final_target(name, out)
        if target is not None:
            path = out.folder.joinpath(*name.split("/"))
            reason = _make_folder(path.parent)
            if reason is None and path.exists():
                reason = "in place of a folder of that name"
            if reason is None:
                os.link(out.folder / target, path)
                out.files += 1
        if reason:
            out.bad.append(BadEntry(entry.name, reason))


def _final_target(name: str, out: Extraction) -> tuple[str | None, str | None]:
    """Follow links within the archive to a file of it; or why there is none."""
    visited = set()
    while name in out.links:
        if name in visited:
            return None, "a link to itself"
        visited.add(name)
        entry = out.links[name]
        raw = entry.target.replace("\\", "/")
        # A symbolic link starts at its own folder, a hard link at the top of the archive.
        base = os.path.dirname(name) if entry.relative else ""
        if raw.startswith("/") or raw[1:2] == ":":
            return None, f"a link out of the folder, to {entry.target}"
        name = os.path.normpath(os.path.join(base, raw))
        if name == ".." or name.startswith("../"):
            return None, f"a link out of the folder, to {entry.target}"
    if (out.folder / name).is_file():
        return name, None
    return None, f"a link to {entry.target}, which is no file of the archive"
