"""The space that preparing a data set will take, known before the work begins."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from panoda.data.formats.dataset import RawItem
from panoda.data.prepare.items import PrepareConfig

WEBP_SHARE = 0.5
"""Compressed size of photographs and labels relative to raw ones, at most as a rule (docs/benchmarks.md)."""
RESERVE = 0.02
"""Share added for indices, notes and the file system."""


def foresee(splits: Iterable[Sequence[RawItem]], config: PrepareConfig) -> int:
    """Bytes of the items' images and labels: exact for codec raw, an upper estimate for webp."""
    pixels = config.spec.height * config.spec.width
    raw = sum(len(items) * pixels * (3 if items[0].label is None else 4) for items in splits)
    return raw if config.codec == "raw" else round(WEBP_SHARE * raw)


def check_space(out: Path, need: int, *, kept: int, cache: Path | None) -> int:
    """Fail early when the result exceeds the free disk space.

    Args:
        need: Bytes of the result.
        kept: Bytes of it that are finished and lie on that disk.
        cache: Where DVC will keep a second copy of all of it; None for no copy.

    Returns:
        Free bytes where the result will lie.

    Raises:
        OSError: disk full.
    """
    here, copy = _existing(out), None if cache is None else _existing(cache)
    free, wanted, note = shutil.disk_usage(here).free, {here: max(need - kept, 0)}, ""
    if copy is not None:
        same = copy.stat().st_dev == here.stat().st_dev
        wanted[here if same else copy] = need + (wanted[here] if same else 0)
        note = (
            f" (DVC's copy in {cache} counts; `dvc config cache.type reflink,hardlink,copy` does without it)"
        )
    for where, size in wanted.items():
        left = shutil.disk_usage(where).free
        if left < (1 + RESERVE) * size:
            raise OSError(
                errno.ENOSPC,
                f"disk full: {out} needs about {megabytes(size)} in {where}{note}, {megabytes(left)} are "
                "free; free some space, lower prepare.height and prepare.width, or compress with "
                "prepare.codec: webp",
            )
    return free


def megabytes(size: float) -> str:
    """A readable number of bytes, in steps of 1000."""
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())
