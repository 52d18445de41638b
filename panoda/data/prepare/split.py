"""One split of a data set to its shards and index, shard by shard in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from panoda.data.formats.dataset import RawItem
from panoda.data.loading.index import CODEC_FORMAT, FORMAT, INDEX, IndexWriter
from panoda.data.loading.shards import ShardInfo, ShardWriter, shard_name
from panoda.data.prepare import finished
from panoda.data.prepare.finished import Finished
from panoda.data.prepare.item_table import SplitItems
from panoda.data.prepare.items import How, Problems, Result, prepare_items
from panoda.data.prepare.plausible import doubts, known_ids
from panoda.data.prepare.statistics import Counts
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError
from panoda.system.files import sha256_file, take_over
from panoda.system.progress import progress_bar

INDEX_SCHEMA = pa.schema(
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
class _Shard:
    """A shard to be made, or already finished: then its size is known."""

    number: int
    recipe: str
    finished: int | None


class SplitWork:
    """The shards of one split: which are finished, which are still to be made.

    Attributes:
        name: Split name.
        items: Its items in order.
        waiting: Folder where finished shards wait until all are; None for none.
        shards: All shards in order.
        counts: What was counted, complete after ``write_shards``.
    """

    def __init__(self, items: SplitItems, how: How, waiting: Path | None) -> None:
        """Look for finished shards in the folder ``waiting``."""
        self.name, self.items, self.how = items.name, items, how
        self.waiting = waiting / items.name if waiting else None
        self.counts = Counts()
        self.shards = [self._look(number) for number in range(-(-len(items) // how.shard_images))]

    @property
    def todo(self) -> Todo:
        """Items of the shards that are not finished, in order."""
        return Todo(self, [shard.number for shard in self.shards if shard.finished is None])

    def items_of(self, number: int) -> Iterator[RawItem]:
        """Items of one shard."""
        start = number * self.how.shard_images
        return self.items.between(start, start + self.how.shard_images)

    def length(self, number: int) -> int:
        """Number of items of one shard."""
        return min(self.how.shard_images, len(self.items) - number * self.how.shard_images)

    def look_again(self, number: int) -> None:
        """A shard was made elsewhere: see whether it is finished now."""
        self.shards[number] = self._look(number)

    def _look(self, number: int) -> _Shard:
        if self.waiting is None:
            return _Shard(number, "", None)
        settings = {"spec": asdict(self.how.spec), "codec": self.how.codec}
        made_from = finished.recipe(self.items_of(number), **settings)
        return _Shard(number, made_from, finished.size(self.waiting, number, made_from))


class Todo:
    """The items of some shards of a split, by position."""

    def __init__(self, work: SplitWork, numbers: list[int]) -> None:
        """Of the shards ``numbers``, in ascending order."""
        self._work, self._numbers = work, numbers

    def __len__(self) -> int:
        """Number of items."""
        return sum(self._work.length(number) for number in self._numbers)

    def __getitem__(self, index: int) -> RawItem:
        """Item ``index``; only the last shard of a split may be shorter than the others."""
        place, row = divmod(index, self._work.how.shard_images)
        return self._work.items[self._numbers[place] * self._work.how.shard_images + row]

    def __iter__(self) -> Iterator[RawItem]:
        """All items in order."""
        return (item for number in self._numbers for item in self._work.items_of(number))


def write_shards(
    work: SplitWork, folder: Path, *, classes: Mapping[str, Any], progress: bool
) -> dict[str, Any]:
    """Make what is not finished, and the index.

    Shards are made in the waiting folder, or at once in ``folder`` where there is none.

    Args:
        work: The split.
        folder: Where shards and index.parquet go.
        classes: What the index says of the label space.
        progress: Show a progress bar.

    Returns:
        What dataset.json says of the split.

    Raises:
        DataError: bad items; the message names them.
    """
    place = work.waiting or folder
    place.mkdir(parents=True, exist_ok=True)
    infos: list[ShardInfo] = []
    problems = Problems()
    with ExitStack() as stack:
        index = stack.enter_context(IndexWriter(folder / INDEX, INDEX_SCHEMA))
        bar = stack.enter_context(progress_bar(enabled=progress))
        task = bar.add_task(f"preparing {work.name}", total=len(work.items))
        results = stack.enter_context(closing(prepare_items(work.todo, work.how)))
        for shard in work.shards:
            if shard.finished is not None:
                done = finished.load(place, shard.number)
                bar.advance(task, work.length(shard.number))
            else:
                made = make_shard(
                    results,
                    place,
                    work.how,
                    number=shard.number,
                    length=work.length(shard.number),
                    labelled=work.items[0].label is not None,
                    problems=problems,
                    advance=lambda: bar.advance(task),
                )
                if made is None:
                    if problems.full:
                        break
                    continue
                done = made
                if work.waiting is not None:
                    finished.save(place, shard.number, shard.recipe, done)
            infos.append(done["info"])
            work.counts.add(Counts.from_json(done["counts"]))
            index.add(done["rows"])
        problems.check()
        index.finish(_metadata(work, infos, classes))
    if work.waiting is not None:
        for info in infos:
            take_over(work.waiting / info["file"], folder)
    found = suspicions(work, classes["class_names"])
    return {
        "images": len(work.items),
        "labelled": work.items[0].label is not None,
        "projection": work.items[0].projection,
        "fov_x_deg": work.items[0].fov_x_deg,
        "digest": sha256_file(folder / INDEX),
    } | ({"doubts": found} if found else {})


def suspicions(work: SplitWork, names: Sequence[str]) -> list[str]:
    """What is suspicious about the prepared labels of a split (``panoda.data.prepare.plausible``)."""
    spec, item = work.how.spec, work.items[0]
    if item.label is None or spec.table is None:
        return []
    reached = {int(spec.table[k]) for k in known_ids(item.encoding, spec.num_classes_from)}
    return doubts(
        work.counts.labels[: spec.num_classes],
        int(work.counts.labels[IGNORE_INDEX]),
        work.counts.images,
        names=names,
        possible=reached - {IGNORE_INDEX},
        in_part=IGNORE_INDEX in reached or (item.encoding is not None and item.encoding.others == "ignore"),
        missing=work.name == "train",
    )


def make_shard(
    results: Iterator[Result | DataError],
    place: Path,
    how: How,
    *,
    number: int,
    length: int,
    labelled: bool,
    problems: Problems,
    advance: Callable[[], None] = lambda: None,
) -> Finished | None:
    """Write one shard from the next results; None when there is a problem, here or before.

    Args:
        results: Prepared items; the shard's are the next ones.
        place: Folder of the shard.
        how: Sizes and codec.
        number: Number of the shard.
        length: Its number of items.
        labelled: Items have labels.
        problems: Collects bad items.
        advance: Called after each item.
    """
    # Another run's result may have this name for the same bytes: never write into them.
    (place / shard_name(number)).unlink(missing_ok=True)
    columns: dict[str, tuple[int, ...]] = {"image": (3, how.spec.height, how.spec.width)}
    if labelled:
        columns["label"] = (how.spec.height, how.spec.width)
    rows: list[dict[str, Any]] = []
    counts = Counts()
    with ShardWriter(
        place, columns=columns, rows_per_shard=how.shard_images, codec=how.codec, first=number
    ) as writer:
        for result in islice(results, length):
            advance()
            if isinstance(result, DataError):
                problems.add(str(result))
                if problems.full:
                    break
            elif not problems.count:
                row = result.row
                row["shard"], row["row"], row["crc32"] = writer.append(result.cells)
                rows.append(row)
                counts.add(result.counts)
    if problems.count:
        return None
    return Finished(info=writer.shards[0], rows=rows, counts=counts.to_json())


def _metadata(work: SplitWork, infos: list[ShardInfo], classes: Mapping[str, Any]) -> dict[str, Any]:
    """What the index says of the split as a whole."""
    how = work.how
    metadata = {
        "format": FORMAT,
        **classes,
        "height": how.spec.height,
        "width": how.spec.width,
        "has_labels": work.items[0].label is not None,
        "shards": infos,
    }
    if how.codec != "raw":
        metadata |= {"format": CODEC_FORMAT, "codec": how.codec}
    if found := suspicions(work, classes["class_names"]):
        metadata["doubts"] = found
    return metadata
