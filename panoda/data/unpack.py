"""Unpacking archives of strangers: nothing leaves the folder, bad entries are kept out and counted.

An archive is unpacked into a hidden folder beside its destination and moved there when it is complete; then a
marker (``.unpacked/NAME.json``) says so. No link is ever created: an entry that links to a file of the same
archive becomes that file. Owners, modes and times of the entries are not applied.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from panoda.data.archives import Damaged, Entry, open_archive
from panoda.data.dataset import DataError
from panoda.files import explain_disk_full, write_json
from panoda.locks import file_lock

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


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive.

    Attributes:
        archive: Its file name.
        files: Files unpacked.
        bytes: Their size.
        bad: Entries kept out.
        already: It had been unpacked before; nothing was done.
    """

    archive: str
    files: int
    bytes: int
    bad: tuple[BadEntry, ...] = ()
    already: bool = False


@dataclass
class _Out:
    """What is being unpacked: the folder it goes to first, what is there, and how much more there may be."""

    folder: Path
    limit: int
    ratio: float
    seen: set[str] = field(default_factory=set)
    links: dict[str, Entry] = field(default_factory=dict)
    bad: list[BadEntry] = field(default_factory=list)
    files: int = 0
    bytes: int = 0


def unpack(
    archive: Path,
    folder: Path,
    *,
    max_ratio: float = 200.0,
    max_bytes: int = 1 << 41,
    max_entries: int = 20_000_000,
) -> Unpacked:
    """Unpack a zip or tar (plain, gz, bz2, xz) into ``folder``; what is there stays, same names are replaced.

    Entries that would leave the folder, links to elsewhere, devices, second entries of a name, encrypted or
    damaged ones (bad CRC) and those packed more tightly than ``max_ratio`` are kept out and listed.

    Args:
        archive: The file.
        folder: Destination; created.
        max_ratio: Unpacked to packed size, of an entry above 1 MiB and of the whole archive.
        max_bytes: Most unpacked bytes of the archive; the free space of the disk limits them as well.
        max_entries: Most entries.

    Returns:
        Counts and the entries kept out; ``already`` when a marker shows that this archive was unpacked here.

    Raises:
        DataError: not an archive, cut off or damaged as a whole, or beyond the limits; nothing is kept of it.
        OSError: disk full.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: no such file; fetch it first")
    with file_lock(folder / MARKERS / f"{archive.name}.lock", what=f"unpacking {archive.name}"):
        before = unpacked_before(archive, folder)
        if before is not None:
            return before
        staging = folder / f".unpacking-{archive.name}"
        # A process that was killed left it: the lock says that nobody is at work.
        shutil.rmtree(staging, ignore_errors=True)
        limit = min(max_bytes, int(max_ratio * archive.stat().st_size) + SMALL_ENTRY)
        out = _Out(folder=staging, limit=limit, ratio=max_ratio)
        try:
            with explain_disk_full(folder):
                staging.mkdir()
                _extract(archive, out, max_entries)
                top = sorted(path.name for path in staging.iterdir())
                _move(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        done = Unpacked(archive=archive.name, files=out.files, bytes=out.bytes, bad=tuple(out.bad))
        write_json(_marker(folder, archive.name), {**asdict(done), "top": top, "packed": _identity(archive)})
        return done


def unpacked_before(archive: Path, folder: Path) -> Unpacked | None:
    """What a marker says of an archive that was unpacked into ``folder``; None when it has to be unpacked.

    The archive may have been removed since. One of another size or time than that of the marker counts as not
    unpacked, and so does one whose unpacked files are gone.
    """
    try:
        value = json.loads(_marker(folder, archive.name).read_text(encoding="utf-8"))
        same = not archive.exists() or value["packed"] == _identity(archive)
        if not same or not all((folder / name).exists() for name in value["top"]):
            return None
        bad = tuple(BadEntry(**entry) for entry in value["bad"])
        return Unpacked(
            archive=value["archive"], files=value["files"], bytes=value["bytes"], bad=bad, already=True
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _marker(folder: Path, name: str) -> Path:
    return folder / MARKERS / f"{name}.json"


def _identity(archive: Path) -> dict[str, int]:
    stat = archive.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


# --- entries -------------------------------------------------------------------------------------------


def _extract(archive: Path, out: _Out, max_entries: int) -> None:
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


def _take(archive: Path, entry: Entry, out: _Out, free: int) -> str | None:
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


def _write(entry: Entry, path: Path, out: _Out) -> str | None:
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


def _require_total(archive: Path, total: int, out: _Out, free: int) -> None:
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


# --- links and the last move ---------------------------------------------------------------------------


def _resolve_links(out: _Out) -> None:
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


def _final_target(name: str, out: _Out) -> tuple[str | None, str | None]:
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


def _move(source: Path, folder: Path) -> None:
    """Move everything below ``source`` to the same place below ``folder``; folders are merged."""
    for path in sorted(source.iterdir()):
        target = folder / path.name
        if path.is_dir() and target.is_dir():
            _move(path, target)
        elif path.is_dir() != target.is_dir() and target.exists():
            raise DataError(f"{target}: in the way of what the archive brings; move it elsewhere")
        else:
            os.replace(path, target)
