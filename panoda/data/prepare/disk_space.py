"""The space that preparing a data set will take, known before the work begins."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from panoda.data.formats.dataset import RawItem
from panoda.data.loading.codec import Codec

SAMPLE = 8
"""Images of each split that are prepared on trial to foresee the size of compressed ones."""
RESERVE = 0.02
"""Share added for indices, notes and the file system."""


class Members(Protocol):
    """Items by position."""

    def __len__(self) -> int:
        """Number of items."""

    def __getitem__(self, index: int, /) -> RawItem:
        """Item ``index``."""


@dataclass(frozen=True)
class Need:
    """Bytes that are still to be written.

    Attributes:
        size: Bytes.
        sampled: Images the figure was estimated from; 0 when it is exact.
        spread: Relative uncertainty (two standard errors); 0 when exact.
    """

    size: int
    sampled: int = 0
    spread: float = 0.0

    def __str__(self) -> str:
        """Megabytes, and how sure they are."""
        tail = f" (+-{100 * self.spread:.0f} %, from {self.sampled} images)" if self.sampled else ""
        return f"{megabytes(self.size)}{tail}"


def foresee(
    splits: Mapping[str, Members],
    *,
    height: int,
    width: int,
    codec: Codec,
    trial: Callable[[Sequence[RawItem]], Sequence[int]],
) -> Need:
    """Space of the items' images and labels.

    Args:
        splits: Split name -> items that are still to be prepared.
        height: Prepared height in pixels.
        width: Prepared width in pixels.
        codec: How they are stored.
        trial: Prepares some items and returns their bytes, leaving out those that fail.
    """
    total, variance, sampled = 0.0, 0.0, 0
    for members in splits.values():
        raw = height * width * (3 if members and members[0].label is None else 4)
        sizes: Sequence[int] = []
        if codec != "raw" and members:
            count = min(SAMPLE, len(members))
            # Spread over the split: neighbours of a sequence look alike.
            sizes = trial([members[(2 * i + 1) * len(members) // (2 * count)] for i in range(count)])
        mean = sum(sizes) / len(sizes) if sizes else float(raw)
        total += mean * len(members)
        if len(sizes) > 1 and len(sizes) < len(members):
            each = sum((s - mean) ** 2 for s in sizes) / (len(sizes) - 1)
            variance += each / len(sizes) * len(members) ** 2
        sampled += len(sizes)
    spread = 2 * math.sqrt(variance) / total if total else 0.0
    return Need(round(total), sampled, spread)


def check_space(
    out: Path, need: Need, *, also: Path | None = None, kept: int = 0, cache: Path | None = None
) -> int:
    """Refuse before an hour of work what cannot fit.

    Args:
        out: Where the result will lie.
        need: What is still to be written.
        also: Where shards wait until all are finished; None for beside ``out``.
        kept: Bytes of shards that wait there already.
        cache: Where DVC will keep a second copy of all of it; None for no copy.

    Returns:
        Free bytes where the result will lie.

    Raises:
        OSError: disk full.
    """
    place = _existing(out)
    wanted = {place: need.size}
    if also is not None and (other := _existing(also)).stat().st_dev != place.stat().st_dev:
        # The finished shards are copied from one disk to the other.
        wanted = {place: need.size + kept, other: need.size}
    if cache is not None:
        second = _existing(cache)
        same = next((p for p in wanted if p.stat().st_dev == second.stat().st_dev), second)
        wanted[same] = wanted.get(same, 0) + need.size + kept
    copied = (
        ""
        if cache is None
        else (
            f" (DVC's copy in {cache} counts; `dvc config cache.type reflink,hardlink,copy` does without it)"
        )
    )
    for where, size in wanted.items():
        free = shutil.disk_usage(where).free
        if free < (1 + RESERVE) * size:
            raise OSError(
                errno.ENOSPC,
                f"disk full: {out} needs about {need if size == need.size else megabytes(size)} in {where}"
                f"{copied}, {megabytes(free)} are free; free some space, lower prepare.height and "
                "prepare.width, or compress with prepare.codec: webp",
            )
    return shutil.disk_usage(place).free


def megabytes(size: float) -> str:
    """A readable number of bytes, in steps of 1000."""
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())
