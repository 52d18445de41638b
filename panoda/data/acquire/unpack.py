"""Unpacking archives of strangers: nothing leaves the folder, bad entries are kept out and counted.

An archive is unpacked into a hidden folder beside its destination and moved there when it is complete; then a
marker (``.unpacked/NAME.json``) says so.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from panoda.data.acquire.extract import MARKERS, SMALL_ENTRY, BadEntry, Extraction, extract
from panoda.system.errors import DataError
from panoda.system.files import explain_disk_full, write_json
from panoda.system.locks import file_lock


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
        out = Extraction(folder=staging, limit=limit, ratio=max_ratio)
        try:
            with explain_disk_full(folder):
                staging.mkdir()
                extract(archive, out, max_entries=max_entries)
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
