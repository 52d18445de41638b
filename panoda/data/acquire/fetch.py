"""Fetching the files of a data set: verified, resumable, never twice.

A complete file lies under its own name in the download folder; what is on its way has a longer name
(``.part``, ``.gdrive``, ``.cityscapes``) and is kept between attempts; what proved wrong is renamed to
``.bad``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from panoda.data.acquire.fetch_hosts import Cityscapes, download_google_drive
from panoda.data.acquire.fetch_http import FetchError, download_http, part_of, require_space
from panoda.data.formats.declaration import RemoteFile
from panoda.system.locks import file_lock


def is_remote(file: RemoteFile) -> bool:
    """Whether a file has an address at all; the others are fetched by hand."""
    return bool(file.url or file.google_drive or file.cityscapes)


def fetch_files(files: Sequence[RemoteFile], folder: Path, *, progress: bool) -> list[Path]:
    """Fetch what is missing into the download folder; returns the files in the order of ``files``.

    A file that is here and has the right size and checksum is not fetched again; a wrong one is renamed to
    ``NAME.bad``.

    Raises:
        FetchError: one or more files could not be fetched, with the reason of each; the others are there.
    """
    for file in files:
        _check_name(file, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".fetch.lock", what=f"the download folder {folder}"):
        missing = [file for file in files if not _present(file, folder)]
        require_space(
            folder,
            sum(max((file.bytes or 0) - _arrived(folder / file.name), 0) for file in missing),
            what=f"{len(missing)} files still to fetch",
        )
        problems = _fetch_missing(missing, folder, progress=progress and Console().is_terminal)
    if problems:
        listed = "\n".join(problems)
        raise FetchError(listed if len(problems) == 1 else f"{len(problems)} files are missing:\n{listed}")
    return [folder / file.name for file in files]


def verify(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a complete file (size first, then checksums), found and expected; None = nothing."""
    if file.folder:
        return None if path.is_dir() else "not a folder"
    if not path.is_file():
        return "not a file"
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"wrong size: {size} bytes, expected {file.bytes}"
    if size == 0:
        return "wrong size: empty"
    for kind, expected in (("sha256", file.sha256), ("md5", file.md5)):
        if expected is None:
            continue
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, kind).hexdigest()
        if found != expected.lower():
            return f"wrong {kind}: {found}, expected {expected.lower()}"
    return None


# --- one file ------------------------------------------------------------------------------------------


def _check_name(file: RemoteFile, folder: Path) -> None:
    plain = file.name not in ("", ".", "..") and not set(file.name) & set("/\\\0")
    if not plain:
        raise FetchError(
            f"{file.name!r} is not a file name; a file of a declaration lies directly in {folder}"
        )


def _present(file: RemoteFile, folder: Path) -> bool:
    """Whether the file is here and right; a wrong one is moved aside."""
    path = folder / file.name
    if not path.exists():
        return False
    if verify(path, file) is None:
        return True
    set_aside(path)
    return False


def set_aside(path: Path) -> Path:
    """Rename a wrong file or folder to ``NAME.bad``, replacing an older one; returns the new path."""
    bad = path.with_name(f"{path.name}.bad")
    _remove(bad)
    os.replace(path, bad)
    return bad


def _arrived(target: Path) -> int:
    part = part_of(target)
    return part.stat().st_size if part.is_file() else 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _settle(fetched: Path, file: RemoteFile, target: Path) -> None:
    """Verify what arrived and give it its name; what is wrong is removed: the next run starts over."""
    wrong = verify(fetched, file)
    if wrong is not None:
        _remove(fetched)
        raise FetchError(
            f"{target.name}: {wrong}; what arrived was removed. Run the command again; when it "
            "happens again, the published file changed or the declaration is wrong"
        )
    os.replace(fetched, target)


def _fetch_missing(files: Sequence[RemoteFile], folder: Path, *, progress: bool) -> list[str]:
    """Fetch each; returns the problems, one text per file."""
    cityscapes, problems = Cityscapes(), []
    for file in files:
        target = folder / file.name
        try:
            if file.cityscapes:
                fetched = cityscapes.download(file, target, progress=progress)
            elif file.google_drive:
                fetched = download_google_drive(file, target, progress=progress)
            else:
                fetched = download_http(str(file.url), target, expected=file.bytes, progress=progress)
            _settle(fetched, file, target)
        except FetchError as error:  # one bad file does not stop the others
            problems.append(str(error))
        else:
            _remove(target.with_name(f"{file.name}.cityscapes"))
    return problems
