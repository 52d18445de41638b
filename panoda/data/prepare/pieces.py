"""Shards of a split made by the workers of a cluster, as pieces; then they are as good as finished before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.loading.shards import shard_name
from panoda.data.prepare import finished
from panoda.data.prepare.items import How, prepare_items, raise_problems
from panoda.data.prepare.split import Shard, SplitWork, make_shard
from panoda.system.context import RunContext
from panoda.system.files import staged_directory, take_over
from panoda.system.pieces import Work, finish


def make_elsewhere(work: SplitWork, compute: RunContext) -> None:
    """Have every unfinished shard of a split made by ``compute.fan_out`` and put where finished ones wait.

    Raises:
        DataError: bad items; the message names those of one shard.
        ValueError: there is no folder where finished shards wait.
    """
    missing = [shard for shard in work.shards if shard.size is None]
    if not missing:
        return
    if work.waiting is None or compute.state_dir is None:
        raise ValueError("shards made by a cluster need a state folder that all workers share")
    place = compute.state_dir / "pieces"
    lists = (place / f"items-{work.name}").absolute()
    recipes = hashlib.sha256()
    with staged_directory(lists) as folder:
        for piece, shard in enumerate(missing):
            _write_shard(folder / f"{piece}.json", shard)
            recipes.update(f"{shard.number} {shard.recipe}\n".encode())
    shards = ShardWork(work.name, lists, work.how, len(missing), recipes.hexdigest())
    work.waiting.mkdir(parents=True, exist_ok=True)
    for shard, made in zip(missing, finish(shards, place, compute), strict=True):
        for name in (shard_name(shard.number), f"{shard_name(shard.number)}.json"):
            (work.waiting / name).unlink(missing_ok=True)
            take_over(made / name, work.waiting)
        shard.size = finished.size(work.waiting, shard.number, shard.recipe)


@dataclass(frozen=True)
class ShardWork(Work):
    """Some shards of a split, of the same size for any number; ``panoda.data.prepare.finished`` reads a piece.

    Attributes:
        lists: Folder with a JSON file of every shard, under the piece's number.
        recipes: SHA-256 over numbers and recipes of all.
    """

    split: str
    lists: Path
    how: How
    count: int
    recipes: str

    @property
    def name(self) -> str:
        """For messages, and the folder of the pieces."""
        return f"preparing {self.split}"

    def identity(self) -> dict[str, Any]:
        """The recipes cover items, files and settings."""
        return {"shards": self.recipes}

    def __len__(self) -> int:
        return self.count

    def open(self, compute: Any) -> Callable[[int, Path], None]:
        """Nothing to open: a piece reads its own items, in as many threads as this worker may use."""
        how = dataclasses.replace(self.how, workers=torch.get_num_threads())

        def make(piece: int, folder: Path) -> None:
            shard = _read_shard(self.lists / f"{piece}.json")
            problems: list[str] = []
            with closing(prepare_items(shard.items, how)) as results:
                made = make_shard(
                    results, folder, how, number=shard.number, items=shard.items, problems=problems
                )
            raise_problems(problems)
            assert made is not None
            finished.save(folder, shard.number, shard.recipe, made)

        return make


def _write_shard(path: Path, shard: Shard) -> None:
    """Write a shard to be made; an encoding that items share is written once, paths are absolute."""
    encodings: dict[Encoding, int] = {}
    rows = []
    for item in shard.items:
        row = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        row["image"] = os.path.abspath(item.image)
        row["label"] = None if item.label is None else os.path.abspath(item.label)
        if item.encoding is not None:
            row["encoding"] = encodings.setdefault(item.encoding, len(encodings))
        rows.append(row)
    known = [dataclasses.asdict(encoding) for encoding in encodings]
    value = {"number": shard.number, "recipe": shard.recipe, "encodings": known, "items": rows}
    path.write_text(json.dumps(value), encoding="utf-8")


def _read_shard(path: Path) -> Shard:
    value = json.loads(path.read_text(encoding="utf-8"))
    known = [Encoding(**{**row, "table": tuple(map(tuple, row["table"]))}) for row in value["encodings"]]
    items = [
        RawItem(
            **row
            | {
                "image": Path(row["image"]),
                "label": None if row["label"] is None else Path(row["label"]),
                "void_ids": tuple(row["void_ids"]),
                "encoding": None if row["encoding"] is None else known[row["encoding"]],
            }
        )
        for row in value["items"]
    ]
    return Shard(value["number"], items, value["recipe"])
