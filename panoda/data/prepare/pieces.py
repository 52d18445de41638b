"""Shards of a split made by the workers of a cluster, as pieces; then they are as good as finished before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from panoda.data.formats.dataset import RawItem
from panoda.data.loading.shards import shard_name
from panoda.data.prepare import finished
from panoda.data.prepare.item_lists import read_items, write_items
from panoda.data.prepare.items import How, Problems, prepare_items
from panoda.data.prepare.split import SplitWork, make_shard
from panoda.system.files import staged_directory, take_over, write_json
from panoda.system.pieces import Compute, Work, finish


def make_elsewhere(work: SplitWork, compute: Compute) -> None:
    """Have every unfinished shard of a split made by ``compute.fan_out`` and put where finished ones wait.

    Raises:
        DataError: bad items; the message names those of one shard.
        ValueError: there is no folder where finished shards wait.
    """
    missing = [shard for shard in work.shards if shard.finished is None]
    if not missing:
        return
    if work.waiting is None or compute.state_dir is None:
        raise ValueError("shards made by a cluster need a state folder that all workers share")
    place = compute.state_dir / "pieces"
    lists = (place / f"items-{work.name}").absolute()
    recipes = hashlib.sha256()
    with staged_directory(lists) as folder:
        for piece, shard in enumerate(missing):
            write_items(folder / f"{piece}.json", _absolute(work.items_of(shard.number)))
            write_json(folder / f"{piece}.shard.json", {"number": shard.number, "recipe": shard.recipe})
            recipes.update(f"{shard.number} {shard.recipe}\n".encode())
    shards = ShardWork(work.name, lists, work.how, len(missing), recipes.hexdigest())
    work.waiting.mkdir(parents=True, exist_ok=True)
    for shard, made in zip(missing, finish(shards, place, compute), strict=True):
        for name in (shard_name(shard.number), f"{shard_name(shard.number)}.json"):
            (work.waiting / name).unlink(missing_ok=True)
            take_over(made / name, work.waiting)
        work.look_again(shard.number)


@dataclass(frozen=True)
class ShardWork(Work):
    """Some shards of a split; a piece holds a shard and the note that ``panoda.data.prepare.finished`` reads.

    It goes to the workers with every piece, so it has the same size for any number of shards.

    Attributes:
        split: Name of the split.
        lists: Folder with items (``panoda.data.prepare.item_lists``), number and recipe of every shard, under the
            piece's number.
        how: Sizes, labels and codec.
        count: Number of shards.
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
        """Number of pieces."""
        return self.count

    def open(self, compute: Any) -> Callable[[int, Path], None]:
        """Nothing to open: a piece reads its own items, in as many threads as this worker may use."""
        how = dataclasses.replace(self.how, workers=torch.get_num_threads())

        def make(piece: int, folder: Path) -> None:
            shard = json.loads((self.lists / f"{piece}.shard.json").read_text(encoding="utf-8"))
            number, recipe = int(shard["number"]), str(shard["recipe"])
            items = read_items(self.lists / f"{piece}.json")
            problems = Problems()
            with closing(prepare_items(items, how)) as results:
                made = make_shard(
                    results,
                    folder,
                    how,
                    number=number,
                    length=len(items),
                    labelled=items[0].label is not None,
                    problems=problems,
                )
            problems.check()
            assert made is not None
            finished.save(folder, number, recipe, made)

        return make


def _absolute(items: Iterator[RawItem]) -> Iterator[RawItem]:
    """Workers may stand in another folder."""
    for item in items:
        label = None if item.label is None else Path(os.path.abspath(item.label))
        yield dataclasses.replace(item, image=Path(os.path.abspath(item.image)), label=label)
