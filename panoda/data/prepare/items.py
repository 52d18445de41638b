"""Raw items to what shards store: in parallel, in order, with what is wrong collected."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoda.data.formats.dataset import RawItem
from panoda.data.loading.codec import Codec, encode
from panoda.data.prepare.item import ItemSpec, prepare_item
from panoda.data.prepare.statistics import Counts, count
from panoda.system.errors import DataError

MAX_PROBLEMS = 20
"""Bad files listed in one message before giving up."""


@dataclass(frozen=True)
class PrepareConfig:
    """What is the same for every split."""

    spec: ItemSpec
    codec: Codec
    shard_images: int
    workers: int


@dataclass(frozen=True)
class Result:
    """One prepared item: what the shard stores, its row of the index, what was counted."""

    cells: dict[str, np.ndarray | bytes]
    row: dict[str, Any]
    counts: Counts

    @property
    def stored(self) -> int:
        """Bytes of the cells."""
        return sum(len(c) if isinstance(c, bytes) else c.nbytes for c in self.cells.values())


def prepare_items(items: Iterable[RawItem], config: PrepareConfig) -> Generator[Result | DataError]:
    """Results in the order of the items; a bounded number is under way, so memory stays constant."""
    # Threads, not processes: Pillow and hashlib work outside the interpreter lock.
    pending: deque[Future[Result | DataError]] = deque()
    with ThreadPoolExecutor(config.workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(_try_one, item, config))
                if len(pending) >= 2 * config.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _try_one(item: RawItem, config: PrepareConfig) -> Result | DataError:
    try:
        arrays, row = prepare_item(item, config.spec)
    except DataError as error:
        return error
    cells = {name: encode(array, config.codec) for name, array in arrays.items()}
    return Result(cells, row, count(arrays, row))


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one DataError that lists the first problems and counts the others; nothing when there are none."""
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:MAX_PROBLEMS])
        more = len(problems) - MAX_PROBLEMS
        tail = f"\n  ... and {more} more" if more > 0 else ""
        raise DataError(f"{len(problems)} problem(s) in the raw data; nothing was written\n{listed}{tail}")
