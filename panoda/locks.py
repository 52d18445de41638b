"""File locks between processes of one machine: one stage at a time on a GPU, one writer per resume folder.

The kernel drops a lock when its process ends, however it ends, so nothing stale is ever left behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def file_lock(path: Path, *, what: str, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; wait for whoever holds it, and say so.

    Args:
        path: Lock file; created when missing and left in place (removing it would race).
        what: What is locked, for the message.
        say: Where the message goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
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
    if not path.exists():
        return False
    with path.open("a+", encoding="utf-8") as handle:
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
    return Path(tempfile.gettempdir()) / f"panoda-{os.getuid()}" / f"{safe}.lock"


def _try(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
