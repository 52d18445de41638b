"""Shards of a split made by the workers of a cluster, as pieces; then they are as good as finished before."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panoda.data import finished
from panoda.data.dataset import RawItem
from panoda.data.item_lists import read_items, write_items
from panoda.data.prepare_split import How, Problems, SplitWork, cores, make_shard, prepare_items
from panoda.data.shards import shard_name
from panoda.files import staged_file, take_over
from panoda.pieces import Compute, Work, finish


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
    for shard in missing:
        with staged_file(lists / f"{shard.number}.json") as aside:
            write_items(aside, _absolute(work.items_of(shard.number)))
    recipes = tuple((shard.number, shard.recipe) for shard in missing)
    shards = ShardWork(work.name, lists, work.how, recipes)
    work.waiting.mkdir(parents=True, exist_ok=True)
    for (number, _), piece in zip(recipes, finish(shards, place, compute), strict=True):
        for name in (shard_name(number), f"{shard_name(number)}.json"):
            (work.waiting / name).unlink(missing_ok=True)
            take_over(piece / name, work.waiting)
        work.look_again(number)


@dataclass(frozen=True)
class ShardWork(Work):
    """Some shards of a split; a piece holds a shard and the note that ``panoda.data.finished`` reads.

    Attributes:
        split: Name of the split.
        lists: Folder with the items of every shard (``panoda.data.item_lists``), under its number.
        how: Sizes, labels and codec.
        shards: Number and recipe of every shard.
    """

    split: str
    lists: Path
    how: How
    shards: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """For messages, and the folder of the pieces."""
        return f"preparing {self.split}"

    def identity(self) -> dict[str, Any]:
        """The recipes cover items, files and settings."""
        return {"shards": self.shards}

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self.shards)

    def open(self, compute: Any) -> Callable[[int, Path], None]:
        """Nothing to open: a piece reads its own items."""
        how = dataclasses.replace(self.how, workers=cores())

        def make(piece: int, folder: Path) -> None:
            number, recipe = self.shards[piece]
            items = read_items(self.lists / f"{number}.json")
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
