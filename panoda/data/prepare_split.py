"""One split of a data set to its shards and index: item by item in parallel, shard by shard in order."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoda.data import finished
from panoda.data.codec import Codec, encode
from panoda.data.dataset import DataError, RawItem
from panoda.data.finished import Finished
from panoda.data.prepare_item import ItemSpec, prepare_item
from panoda.data.prepared import CODEC_FORMAT, FORMAT, METADATA_KEY
from panoda.data.shards import ShardInfo, ShardWriter, shard_name
from panoda.data.statistics import Counts, count
from panoda.files import sha256_file
from panoda.progress import progress_bar

MAX_PROBLEMS = 20
"""Bad files listed in one message before giving up."""


@dataclass(frozen=True)
class How:
    """What is the same for every split.

    Attributes:
        spec: Sizes and labels.
        codec: How the shards store arrays.
        shard_images: Images per shard.
        workers: Images worked on at a time.
    """

    spec: ItemSpec
    codec: Codec
    shard_images: int
    workers: int


class _Shard(NamedTuple):
    """A shard to be made, or already finished."""

    number: int
    items: list[RawItem]
    recipe: str
    finished: Finished | None


class SplitWork:
    """The shards of one split: which are finished, which are still to be made.

    Attributes:
        name: Split name.
        items: Its items in order.
        waiting: Folder where finished shards wait until all are; None for none.
        shards: All shards in order.
        counts: What was counted, complete after ``write_shards``.
        infos: What the index remembers of the shards, likewise.
    """

    def __init__(self, name: str, items: list[RawItem], how: How, waiting: Path | None) -> None:
        """Look for finished shards in the folder ``waiting``."""
        self.name, self.items = name, items
        self.waiting = waiting / name if waiting else None
        self.counts = Counts()
        self.infos: list[ShardInfo] = []
        self.shards: list[_Shard] = []
        for number, start in enumerate(range(0, len(items), how.shard_images)):
            part = items[start : start + how.shard_images]
            made_from, done = "", None
            if self.waiting is not None:
                made_from = finished.recipe(part, spec=asdict(how.spec), codec=how.codec)
                done = finished.load(self.waiting, number, made_from)
            self.shards.append(_Shard(number, part, made_from, done))

    @property
    def todo(self) -> list[RawItem]:
        """Items of the shards that are not finished, in order."""
        return [item for shard in self.shards if shard.finished is None for item in shard.items]


def write_shards(work: SplitWork, folder: Path, how: How, *, progress: bool) -> list[pa.Table]:
    """Make what is not finished; returns the rows of the index shard by shard.

    Shards are made in the waiting folder, or at once in ``folder`` where there is none.

    Raises:
        DataError: bad items; the message names them.
    """
    place = work.waiting or folder
    place.mkdir(parents=True, exist_ok=True)
    tables: list[pa.Table] = []
    problems: list[str] = []
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(enabled=progress))
        task = bar.add_task(f"preparing {work.name}", total=len(work.items))
        results = stack.enter_context(closing(prepare_items(work.todo, how)))
        for shard in work.shards:
            done = shard.finished or _make(shard, place, results, problems, how, lambda: bar.advance(task))
            if done is None:
                if len(problems) >= MAX_PROBLEMS:
                    break
                continue
            if shard.finished is not None:
                bar.advance(task, len(shard.items))
            elif work.waiting is not None:
                finished.save(place, shard.number, shard.recipe, done)
            work.infos.append(done["info"])
            work.counts.add(Counts.from_json(done["counts"]))
            tables.append(pa.Table.from_pylist(done["rows"], schema=_INDEX_SCHEMA))
    raise_problems(problems)
    if work.waiting is not None:
        for info in work.infos:
            finished.take(work.waiting / info["file"], folder)
    return tables


def _make(
    shard: _Shard,
    place: Path,
    results: Iterator[Result | DataError],
    problems: list[str],
    how: How,
    advance: Callable[[], None],
) -> Finished | None:
    """Write one shard from the next results; None when there is a problem, here or before."""
    # Another run's result may have this name for the same bytes: never write into them.
    (place / shard_name(shard.number)).unlink(missing_ok=True)
    columns: dict[str, tuple[int, ...]] = {"image": (3, how.spec.height, how.spec.width)}
    if shard.items[0].label is not None:
        columns["label"] = (how.spec.height, how.spec.width)
    rows: list[dict[str, Any]] = []
    counts = Counts()
    writer = ShardWriter(
        place, columns=columns, rows_per_shard=how.shard_images, codec=how.codec, first=shard.number
    )
    with writer:
        for _ in shard.items:
            result = next(results)
            advance()
            if isinstance(result, DataError):
                problems.append(str(result))
                if len(problems) >= MAX_PROBLEMS:
                    break
            elif not problems:
                row = result.row
                row["shard"], row["row"], row["crc32"] = writer.append(result.cells)
                rows.append(row)
                counts.add(result.counts)
    if problems:
        return None
    return Finished(info=writer.shards[0], rows=rows, counts=counts.to_json())


def write_index(
    work: SplitWork, folder: Path, tables: list[pa.Table], how: How, *, space: str
) -> dict[str, Any]:
    """Write index.parquet; returns what dataset.json says of the split."""
    has_labels = work.items[0].label is not None
    metadata = {
        "format": FORMAT,
        "label_space": space,
        "height": how.spec.height,
        "width": how.spec.width,
        "has_labels": has_labels,
        "shards": work.infos,
    }
    if how.codec != "raw":
        metadata |= {"format": CODEC_FORMAT, "codec": how.codec}
    path = folder / "index.parquet"
    table = pa.concat_tables(tables).combine_chunks()
    pq.write_table(
        table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)}),
        path,
    )
    return {
        "images": table.num_rows,
        "labelled": has_labels,
        "projection": work.items[0].projection,
        "fov_x_deg": work.items[0].fov_x_deg,
        "digest": sha256_file(path),
    }


_INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("projection", pa.string()),
        ("fov_x_deg", pa.float64()),
        ("lat_top_deg", pa.float64()),
        ("lat_bottom_deg", pa.float64()),
        ("raw_height", pa.int32()),
        ("raw_width", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("valid_rows", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("crc32", pa.int64()),
        ("image_sha256", pa.string()),
        ("label_sha256", pa.string()),
        ("class_pixels", pa.list_(pa.int64())),
    ]
)


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


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_items(items: list[RawItem], how: How) -> Generator[Result | DataError]:
    """Results in the order of the items; a bounded number is under way, so memory stays constant."""
    # Threads, not processes: Pillow and hashlib work outside the interpreter lock.
    pending: deque[Future[Result | DataError]] = deque()
    with ThreadPoolExecutor(how.workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(_try_one, item, how))
                if len(pending) >= 2 * how.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _try_one(item: RawItem, how: How) -> Result | DataError:
    try:
        arrays, row = prepare_item(item, how.spec)
    except DataError as error:
        return error
    cells = {name: encode(array, how.codec) for name, array in arrays.items()}
    return Result(cells, row, count(arrays, row))


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one DataError that lists them, up to 20; nothing when there are none."""
    if not problems:
        return
    listed = "\n".join(f"  {problem}" for problem in problems[:MAX_PROBLEMS])
    more = len(problems) - MAX_PROBLEMS
    tail = f"\n  ... and {more} more" if more > 0 else ""
    raise DataError(f"{len(problems)} problem(s) in the raw data; nothing was written\n{listed}{tail}")
