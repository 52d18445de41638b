"""Where DVC keeps a second copy of an output, which takes as much space again."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path

_FICLONE = 0x40049409  # ioctl_ficlone(2): a file that shares its blocks with another


def copy_of_outputs(root: Path = Path()) -> Path | None:
    """DVC's cache where it keeps copies of its own; None where it links, or nothing is known of it.

    DVC's settings say which kind of link is tried first; by itself it shares blocks where the file system
    can (Btrfs, XFS), and copies elsewhere.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "--list"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode or not (root / ".dvc").is_dir():
        return None
    settings = dict(line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
    cache = root / ".dvc" / settings.get("cache.dir", "cache")
    kinds = settings.get("cache.type", "reflink,copy").strip("[]").replace("'", "").split(",")
    for kind in map(str.strip, kinds):
        if kind in ("hardlink", "symlink") or (kind == "reflink" and _shares_blocks(root)):
            return None
        if kind == "copy":
            break
    return cache


def _shares_blocks(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as other:
        try:
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
        except OSError:
            return False
        return True
