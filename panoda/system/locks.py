"""File locks between processes of one machine: one stage at a time on a GPU, one writer per resume folder.

The kernel drops a lock when its process ends, however it ends, so nothing stale is ever left behind.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def file_lock(path: Path, *, what: str, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; wait for whoever holds it, and say so.

    Args:
        path: Lock file; created when missing and left in place (removing it would race).

    Raises:
        OSError: the file cannot be opened or is a link; what a link points to is never touched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path, os.O_CREAT) as handle:
        if not _try(handle):
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            say(f"{what} is in use by process {holder}; waiting until it is free")
            fcntl.flock(handle, fcntl.LOCK_EX)
            say(f"{what} is free; going on")
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool:
    """Whether another holder has ``path`` locked right now."""
    try:
        handle = _open(path)
    except FileNotFoundError:
        return False
    with handle:
        if not _try(handle):
            return True
        fcntl.flock(handle, fcntl.LOCK_UN)
        return False


def gpu_lock_path(identity: str) -> Path:
    """Lock file of a GPU."""
    return user_lock_path(f"gpu {identity}")


def user_lock_path(what: str) -> Path:
    """Lock file of ``what``, the same for every project and checkout of this user on this machine."""
    safe = "".join(c if c.isalnum() else "-" for c in what)
    if len(safe) > 200:
        safe = hashlib.sha256(what.encode()).hexdigest()
    return own_folder() / f"{safe}.lock"


def own_folder() -> Path:
    """This user's folder below the temporary one, which all users share: nobody else can write there.

    Raises:
        OSError: a link, a file or another user's folder lies in its place.
    """
    folder = Path(tempfile.gettempdir()) / f"panoda-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        what = (
            f"is user {found.st_uid}'s" if stat.S_ISDIR(found.st_mode) else "is no folder but a link or file"
        )
        raise OSError(
            f"{folder}: {what}; locks need a folder of your own there: remove it, or set TMPDIR to a folder "
            "that is yours alone"
        )
    if found.st_mode & 0o077:  # of an earlier version
        folder.chmod(0o700)
    return folder


def _open(path: Path, flags: int = 0) -> IO[str]:
    """Open a lock file to read and append, but not through a link."""
    try:
        number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(f"{path}: a link lies where a lock file is needed; remove it") from error
    return os.fdopen(number, "a+", encoding="utf-8")


def _try(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
