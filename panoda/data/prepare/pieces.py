"""The shards of a split as pieces of work (``panoda.system.pieces``): a shard, its rows of the index, its counts.

So a killed run goes on with the shards it had finished, and the workers of a cluster make them, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from pydantic import TypeAdapter

from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.loading.codec import Codec, encode
from panoda.data.loading.shards import ShardInfo, ShardWriter
from panoda.data.prepare.item import ItemSpec, prepare_item
from panoda.data.prepare.statistics import Counts, count
from panoda.system.context import RunContext
from panoda.system.errors import DataError
from panoda.system.files import staged_directory, write_json
from panoda.system.pieces import Make, Work, finish

SHARD, PROBLEMS = "shard.json", "problems.json"
"""Files beside a shard, and in place of one that could not be made."""
MAX_PROBLEMS = 20
"""Bad files listed in one message before giving up."""
_Result = tuple[dict[str, np.ndarray | bytes], dict[str, Any], Counts]
"""One prepared item: what the shard stores, its row of the index, what was counted."""
_ITEMS = TypeAdapter(tuple[list[Encoding | None], list[tuple[RawItem, int]]])
"""Items without their encodings, and the number of that of each."""


@dataclass(frozen=True)
class PrepareConfig:
    """What is the same for every split."""

    spec: ItemSpec
    codec: Codec
    shard_images: int
    workers: int


class MadeShard(TypedDict):
    """What the index remembers of a shard, its rows in order, ``Counts`` of its images as JSON."""

    info: ShardInfo
    rows: list[dict[str, Any]]
    counts: dict[str, Any]


def make_shards(
    name: str, items: Sequence[RawItem], config: PrepareConfig, place: Path, context: RunContext
) -> list[Path]:
    """Make the shards of a split that are not finished below ``place``; returns the folder of each.

    Raises:
        DataError: bad items; the message names them, and their shards are made again.
    """
    lists = (place / f"items-{name}").absolute()
    digest = hashlib.sha256(
        json.dumps([asdict(config.spec), config.codec], default=np.ndarray.tolist).encode()
    )
    starts = range(0, len(items), config.shard_images)
    with staged_directory(lists) as folder:
        for number, start in enumerate(starts):
            members = items[start : start + config.shard_images]
            digest.update(_write_items(folder / f"{number}.json", members))
    folders = finish(ShardWork(name, lists, config, len(starts), digest.hexdigest()), place, context)
    bad = [folder for folder in folders if (folder / PROBLEMS).exists()]
    problems = [text for folder in bad for text in _read(folder / PROBLEMS)]
    for folder in bad:
        shutil.rmtree(folder)
    raise_problems(problems)
    return folders


def read_shard(folder: Path) -> MadeShard:
    """What ``make_shards`` noted of a shard."""
    made: MadeShard = _read(folder / SHARD)
    return made


@dataclass(frozen=True)
class ShardWork(Work):
    """The shards of a split.

    Attributes:
        lists: Folder with a JSON file of the items of every shard, under its number.
        count: Number of shards.
        digest: SHA-256 over all that decides their bytes: settings, items, size and time of their files.
    """

    split: str
    lists: Path
    config: PrepareConfig
    count: int
    digest: str

    @property
    def name(self) -> str:
        """For messages, and the folder of the pieces."""
        return f"preparing {self.split}"

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of a piece."""
        return {"shards": self.digest}

    def __len__(self) -> int:
        return self.count

    def open(self, compute: Any) -> Make:
        """Nothing to open: a piece reads its own items."""
        config = replace(self.config, workers=self.config.workers or torch.get_num_threads())
        problems: list[str] = []

        def make(piece: int, folder: Path) -> dict[str, str]:
            if len(problems) >= MAX_PROBLEMS:  # enough is known
                write_json(folder / PROBLEMS, [])
                return {}
            items = _read_items(self.lists / f"{piece}.json")
            info, found = _make_shard(items, folder, piece, config)
            problems.extend(found)
            return {info["file"]: info["sha256"]} if info is not None else {}

        return make


def _make_shard(
    items: Sequence[RawItem], folder: Path, number: int, config: PrepareConfig
) -> tuple[ShardInfo | None, list[str]]:
    """Write a shard and its note into an empty folder, or what is wrong with the items; returns either."""
    columns: dict[str, tuple[int, ...]] = {"image": (3, config.spec.height, config.spec.width)}
    if items[0].label is not None:
        columns["label"] = (config.spec.height, config.spec.width)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    counts = Counts()
    with (
        ShardWriter(
            folder, columns=columns, rows_per_shard=config.shard_images, codec=config.codec, first=number
        ) as writer,
        closing(_prepare_items(items, config)) as results,
    ):
        for result in results:
            if isinstance(result, DataError):
                problems.append(str(result))
                if len(problems) >= MAX_PROBLEMS:
                    break
            elif not problems:
                cells, row, counted = result
                row["shard"], row["row"], row["crc32"] = writer.append(cells)
                rows.append(row)
                counts.add(counted)
    if problems:
        write_json(folder / PROBLEMS, problems)
        return None, problems
    write_json(folder / SHARD, MadeShard(info=writer.shards[0], rows=rows, counts=counts.to_json()))
    return writer.shards[0], []


def _prepare_items(items: Iterable[RawItem], config: PrepareConfig) -> Generator[_Result | DataError]:
    """Results in the order of the items; a bounded number is under way, so memory stays constant."""
    # Threads, not processes: Pillow and hashlib work outside the interpreter lock.
    pending: deque[Future[_Result | DataError]] = deque()
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


def _try_one(item: RawItem, config: PrepareConfig) -> _Result | DataError:
    try:
        arrays, row = prepare_item(item, config.spec)
    except DataError as error:
        return error
    cells = {name: encode(array, config.codec) for name, array in arrays.items()}
    return cells, row, count(arrays, row)


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one DataError that lists the first problems and counts the others; nothing when there are none."""
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:MAX_PROBLEMS])
        more = len(problems) - MAX_PROBLEMS
        tail = f"\n  ... and {more} more" if more > 0 else ""
        raise DataError(f"{len(problems)} problem(s) in the raw data; nothing was written\n{listed}{tail}")


def _write_items(path: Path, items: Sequence[RawItem]) -> bytes:
    """Write items, an encoding that they share once, with absolute paths; returns what they are made from."""
    encodings = list(dict.fromkeys(item.encoding for item in items))
    rows, states = [], []
    for item in items:
        image, label = Path(os.path.abspath(item.image)), item.label and Path(os.path.abspath(item.label))
        rows.append((replace(item, image=image, label=label, encoding=None), encodings.index(item.encoding)))
        for stat in (file.stat() for file in (image, label) if file is not None):
            states.append([stat.st_size, stat.st_mtime_ns])
    text = json.dumps(_ITEMS.dump_python((encodings, rows), mode="json"))
    path.write_text(text, encoding="utf-8")
    return f"{text}{states}".encode()


def _read_items(path: Path) -> list[RawItem]:
    encodings, rows = _ITEMS.validate_python(_read(path))
    return [replace(item, encoding=encodings[number]) for item, number in rows]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
