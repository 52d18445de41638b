"""Unpacking archives of strangers with tarfile and zipfile: nothing leaves the folder, bad entries are named.

An archive is unpacked into a hidden folder beside its destination and moved there when it is complete; then a
marker (``.unpacked/NAME.json``) says so. Entries become plain files: owners, modes and times are not applied,
and no link is created. (The filter "data" of tarfile makes links, and zipfile takes them for text files.)
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import Any, NamedTuple, Self

from panoda.system.errors import DataError
from panoda.system.files import explain_disk_full, write_json
from panoda.system.locks import file_lock

MARKERS = ".unpacked"
"""Folder of the markers, within the destination."""
_BROKEN = (EOFError, zlib.error, LZMAError, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class BadEntry:
    """An entry that was kept out: its name as the archive gives it, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive.

    Attributes:
        already: It had been unpacked before; nothing was done.
    """

    archive: str
    files: int
    bytes: int
    bad: tuple[BadEntry, ...] = ()
    already: bool = False


def unpack(archive: Path, folder: Path) -> Unpacked:
    """Unpack a zip or tar (plain or compressed) into ``folder``; files of the same name are replaced.

    Entries that would leave the folder, links, devices, second entries of a name, and encrypted or damaged ones
    (bad CRC) are kept out and listed.

    Returns:
        Counts and the entries kept out; ``already`` when a marker shows that this archive was unpacked here.

    Raises:
        DataError: not an archive, cut off, damaged as a whole, or larger than the free space of the disk;
            nothing is kept of it.
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
        try:
            with explain_disk_full(folder):
                staging.mkdir()
                done = _extract(archive, staging)
                top = sorted(path.name for path in staging.iterdir())
                _move(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
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
        return Unpacked(value["archive"], value["files"], value["bytes"], bad, already=True)
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


# --- entries of an archive ------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """An entry of an archive: a name not to be trusted, why it is kept out, bytes and opener of a file."""

    name: str
    refused: str = ""
    size: int = 0
    open: Callable[[], Any] | None = None


class _TarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive; only blocks of zeros are its end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:  # type: ignore[override]
        """The next entry."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error


def _tar_entries(archive: tarfile.TarFile) -> Iterator[_Entry]:
    while (info := archive.next()) is not None:
        # tarfile remembers every entry; a million of them need not be.
        archive.members = []  # type: ignore[attr-defined]
        if info.isdir():
            yield _Entry(info.name)
        elif info.isreg() and not info.issparse():
            yield _Entry(info.name, "", info.size, partial(archive.extractfile, info))
        elif info.issym() or info.islnk():
            yield _Entry(info.name, f"a link to {info.linkname}, not a file")
        else:
            kind = "a sparse file" if info.issparse() else "a device or other special file"
            yield _Entry(info.name, f"{kind}, not a file")
    while archive.fileobj is not None and archive.fileobj.read(1 << 20):
        pass  # the check sum of a compressed archive comes last


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        name = info.orig_filename  # zipfile cuts names at a zero byte
        mode = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            yield _Entry(name)
        elif mode in (0, stat.S_IFREG):
            yield _Entry(name, "", info.file_size, partial(archive.open, info))
        else:
            kind = "a link" if mode == stat.S_IFLNK else "a device or other special file"
            yield _Entry(name, f"{kind}, not a file")


# --- into the folder ------------------------------------------------------------------------------------


def _extract(archive: Path, folder: Path) -> Unpacked:
    try:
        with archive.open("rb") as handle:
            zipped = handle.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        if zipped:
            with zipfile.ZipFile(archive) as opened:
                _require_room(archive, sum(info.file_size for info in opened.infolist()), folder)
                return _take_all(archive, _zip_entries(opened), folder, broken=(*_BROKEN, RuntimeError))
        with tarfile.open(archive, tarinfo=_TarInfo) as tar:
            return _take_all(archive, _tar_entries(tar), folder, broken=())
    except (*_BROKEN, OSError) as error:
        # bz2 and gzip raise OSErrors without a number for wrong bytes.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{archive}: not a complete, readable archive ({error}); nothing was unpacked: remove it and "
            "fetch it again"
        ) from error


def _take_all(
    archive: Path, entries: Iterator[_Entry], folder: Path, *, broken: tuple[type[Exception], ...]
) -> Unpacked:
    """Unpack into an empty folder; an error of the kinds ``broken`` damages one entry alone."""
    seen: set[str] = set()
    bad: list[BadEntry] = []
    files = written = 0
    for entry in entries:
        name, reason = _safe_name(entry.name)
        reason = reason or entry.refused
        if name in seen and entry.open is not None:
            reason = reason or "a second entry of that name"
        if not reason and entry.open is not None:
            seen.add(name)
            _require_room(archive, entry.size, folder)
        try:
            reason = reason or _write(entry, folder / name)
        except broken as error:
            reason = str(error) or type(error).__name__
        if reason:
            bad.append(BadEntry(entry.name, reason))
        elif entry.open is not None:
            files, written = files + 1, written + entry.size
    return Unpacked(archive.name, files, written, tuple(bad))


def _write(entry: _Entry, path: Path) -> str:
    """Make a folder, or write a file; returns why it is kept out, or nothing."""
    try:
        (path if entry.open is None else path.parent).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return "lies in a folder that is a file"
    if entry.open is None:
        return ""
    if path.exists():  # a file where upper and lower case are one
        return f"in place of a {'folder' if path.is_dir() else 'file'} of that name"
    try:
        with entry.open() as source, path.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return ""


def _safe_name(name: str) -> tuple[str, str]:
    """An entry's name below the folder, and why it is refused (or nothing).

    Backslashes count as separators: some programs write them.
    """
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    sizes = [len(part.encode(errors="replace")) for part in parts]
    reasons = {
        "a name with a zero byte": "\0" in name,
        "an absolute name": plain.startswith("/") or plain[1:2] == ":",
        "leaves the folder": ".." in parts,
        f"{MARKERS} is kept for markers": parts[:1] == [MARKERS],
        "not a possible file name": max(sizes, default=0) > 255 or sum(sizes) > 2000,
        "a name that is no text": any("\ud800" <= letter <= "\udfff" for letter in name),
    }
    return "/".join(parts), next((reason for reason, found in reasons.items() if found), "")


def _require_room(archive: Path, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{archive}: unpacks to {size / 1e9:.2f} GB or more, but only {free / 1e9:.2f} GB are free "
            f"in {folder.parent}; make room or choose a folder on another disk"
        )
