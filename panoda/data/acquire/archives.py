"""Reading zip and tar archives entry by entry, with one kind of error for everything that is damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

BLOCK = tarfile.BLOCKSIZE
COMPRESSIONS: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile)


class Damaged(Exception):
    """An archive, or an entry of it, cannot be read; the text says why."""


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        name: As the archive gives it: not to be trusted.
        kind: file, folder, link (symbolic or hard) or other.
        size: Announced size in bytes.
        packed: Size in the archive; None where entries are not packed one by one.
        open: Opens the content of a file; reading raises Damaged.
        fatal: Damage here means that nothing after it can be read.
        target: Where a link points to: not to be trusted either.
        relative: The target of a link starts at the link's own folder, not at the top.
        what: What an entry of kind other is, in words.
    """

    name: str
    kind: Literal["file", "folder", "link", "other"]
    size: int = 0
    packed: int | None = None
    open: Callable[[], Any] = lambda: None
    fatal: bool = False
    target: str = ""
    relative: bool = False
    what: str = ""


class Archive(Protocol):
    """An open archive."""

    unpacked_bytes: int | None
    """Announced size of all files; None when only reading tells."""

    def entries(self) -> Iterator[Entry]:
        """The entries in order; a file must be read before the next one is asked for."""
        ...


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip or tar archive by its content.

    Raises:
        Damaged: neither of them, or cut off.
    """
    with path.open("rb") as handle:
        start = handle.read(8)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with _translated(), zipfile.ZipFile(path) as archive:
            yield _Zip(archive)
        return
    opener = next((o for magic, o in COMPRESSIONS if start.startswith(magic)), None)
    with _translated(), opener(path) if opener else path.open("rb") as handle:
        yield _Tar(handle)


@contextmanager
def _translated() -> Iterator[None]:
    """Whatever the libraries raise for broken bytes becomes Damaged."""
    try:
        yield
    except _BROKEN as error:
        raise Damaged(f"not a complete, readable archive ({error})") from error
    except OSError as error:
        # bz2 and gzip raise bare OSErrors without a number for wrong bytes.
        if error.errno is not None:
            raise
        raise Damaged(f"not a complete, readable archive ({error})") from error


# --- zip -----------------------------------------------------------------------------------------------


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.unpacked_bytes: int | None = sum(info.file_size for info in archive.infolist())

    def entries(self) -> Iterator[Entry]:
        for info in self.archive.infolist():
            yield self._entry(info)

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        # zipfile cuts names at a zero byte; the original tells that something is wrong.
        name = info.orig_filename
        mode = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            return Entry(name, "folder")
        if mode == stat.S_IFLNK:
            try:
                target = self._open(info).read(4096).decode("utf-8", "surrogateescape")
            except Damaged as error:
                return Entry(name, "other", what=f"damaged link ({error})")
            return Entry(name, "link", target=target, relative=True)
        if mode not in (0, stat.S_IFREG):
            return Entry(name, "other", what="device or other special file")
        return Entry(
            name,
            "file",
            size=info.file_size,
            packed=info.compress_size,
            open=lambda: self._open(info),
        )

    def _open(self, info: zipfile.ZipInfo) -> _Guarded:
        try:
            return _Guarded(self.archive.open(info))
        except RuntimeError as error:  # encrypted, or packed in a way zipfile does not know
            raise Damaged("encrypted" if info.flag_bits & 1 else str(error)) from error
        except (*_BROKEN, OSError, ValueError) as error:
            raise Damaged(str(error)) from error


class _Guarded:
    """A file of an archive whose reading errors are Damaged."""

    def __init__(self, source: IO[bytes]) -> None:
        self.source = source

    def read(self, count: int) -> bytes:
        try:
            return self.source.read(count)
        except _BROKEN as error:
            raise Damaged(str(error) or type(error).__name__) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise Damaged(str(error)) from error

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()


# --- tar -----------------------------------------------------------------------------------------------


class _LastRead:
    """A file that remembers what was read last: tarfile takes a damaged header for the end."""

    def __init__(self, source: IO[bytes]) -> None:
        self.source = source
        self.last = b""

    def read(self, count: int = -1) -> bytes:
        self.last = self.source.read(count)
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.source.seek(offset, whence)

    def tell(self) -> int:
        return self.source.tell()


class _Tar:
    def __init__(self, source: IO[bytes]) -> None:
        self.source = _LastRead(source)
        self.unpacked_bytes: int | None = None

    def entries(self) -> Iterator[Entry]:
        archive = tarfile.open(fileobj=self.source, mode="r:")  # type: ignore[call-overload]
        name = "the first entry"
        while (info := archive.next()) is not None:
            # tarfile remembers every entry; a million of them need not be.
            archive.members = []
            name = info.name
            yield self._entry(archive, info)
        # An archive ends with blocks of zeros.
        if len(self.source.last) != BLOCK or any(self.source.last):
            raise Damaged(f"damaged or cut off after {name}")
        # The check sum of a compressed archive comes last.
        while self.source.read(1 << 20):
            pass

    def _entry(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Entry:
        if info.isdir():
            return Entry(info.name, "folder")
        if info.issym() or info.islnk():
            return Entry(info.name, "link", target=info.linkname, relative=info.issym())
        if info.issparse():
            return Entry(info.name, "other", what="sparse file")
        if not info.isreg():
            return Entry(info.name, "other", what="device or other special file")

        def content() -> _Guarded:
            source = archive.extractfile(info)
            assert source is not None
            return _Guarded(source)

        return Entry(info.name, "file", size=info.size, open=content, fatal=True)
