"""The space that preparing a data set will take, known before the work begins."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from panoda.data.formats.dataset import RawItem
from panoda.data.prepare.items import How, Result, prepare_items

SAMPLE = 8
"""Images of each split that are prepared on trial to foresee the size of compressed ones."""
RESERVE = 0.02
"""Share added for indices, notes and the file system."""


def foresee(splits: Iterable[Sequence[RawItem]], how: How) -> tuple[int, int]:
    """Bytes of the items' images and labels, and the number of images they were estimated from (0 = exact)."""
    total, sampled = 0.0, 0
    for items in filter(None, splits):
        each = float(how.spec.height * how.spec.width * (3 if items[0].label is None else 4))
        if how.codec != "raw":
            count = min(SAMPLE, len(items))
            # Spread over the split: neighbours of a sequence look alike.
            some = [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
            sizes = [result.stored for result in prepare_items(some, how) if isinstance(result, Result)]
            each = sum(sizes) / len(sizes) if sizes else each
            sampled += len(sizes)
        total += each * len(items)
    return round(total), sampled


def check_space(out: Path, need: int, *, waiting: Path | None, kept: int, cache: Path | None) -> int:
    """Fail early when the result exceeds the free disk space.

    Args:
        waiting: Where shards wait until all are finished; None for beside ``out``.
        kept: Bytes of shards that wait there already.
        cache: Where DVC will keep a second copy of all of it; None for no copy.

    Returns:
        Free bytes where the result will lie.

    Raises:
        OSError: disk full.
    """
    copies = [(_existing(out), need)]
    if waiting is not None and _device(waiting) != _device(out):
        # The finished shards are copied from one disk to the other.
        copies = [(_existing(out), need + kept), (_existing(waiting), need)]
    if cache is not None:
        copies.append((_existing(cache), need + kept))
    wanted: dict[int, int] = {}
    for where, size in copies:
        wanted[_device(where)] = wanted.get(_device(where), 0) + size
    note = (
        f" (DVC's copy in {cache} counts; `dvc config cache.type reflink,hardlink,copy` does without it)"
        if cache is not None
        else ""
    )
    for where, _ in copies:
        size, free = wanted[_device(where)], shutil.disk_usage(where).free
        if free < (1 + RESERVE) * size:
            raise OSError(
                errno.ENOSPC,
                f"disk full: {out} needs about {megabytes(size)} in {where}{note}, {megabytes(free)} are "
                "free; free some space, lower prepare.height and prepare.width, or compress with "
                "prepare.codec: webp",
            )
    return shutil.disk_usage(_existing(out)).free


def megabytes(size: float) -> str:
    """A readable number of bytes, in steps of 1000."""
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev
