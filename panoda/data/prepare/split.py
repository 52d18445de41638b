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
from panoda.data.prepare.items import MAX_PROBLEMS, How, Result, prepare_items, raise_problems
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


@dataclass
class Shard:
    """A shard to be made, or already finished.

    Attributes:
        recipe: What it is made from (``panoda.data.prepare.finished``); "" where nothing is kept.
        size: Bytes when it is finished, else None.
    """

    number: int
    items: Sequence[RawItem]
    recipe: str = ""
    size: int | None = None


class SplitWork:
    """The shards of one split: which are finished, which are still to be made.

    Attributes:
        waiting: Folder where finished shards wait until all are; None for none.
        counts: What was counted, complete after ``write_shards``.
    """

    def __init__(self, name: str, items: Sequence[RawItem], how: How, waiting: Path | None) -> None:
        """Look for finished shards in the folder ``waiting``."""
        self.name, self.items, self.how = name, items, how
        self.waiting = waiting / name if waiting else None
        self.counts = Counts()
        starts = range(0, len(items), how.shard_images)
        self.shards = [Shard(n, items[i : i + how.shard_images]) for n, i in enumerate(starts)]
        if self.waiting is not None:
            for shard in self.shards:
                shard.recipe = finished.recipe(shard.items, spec=asdict(how.spec), codec=how.codec)
                shard.size = finished.size(self.waiting, shard.number, shard.recipe)

    @property
    def todo(self) -> list[RawItem]:
        """Items of the shards that are not finished, in order."""
        return [item for shard in self.shards if shard.size is None for item in shard.items]


def write_shards(
    work: SplitWork, folder: Path, *, classes: Mapping[str, Any], progress: bool
) -> dict[str, Any]:
    """Make what is not finished in the waiting folder (without one: in ``folder``), and the index.

    Returns:
        What dataset.json says of the split.

    Raises:
        DataError: bad items; the message names them.
    """
    place = work.waiting or folder
    place.mkdir(parents=True, exist_ok=True)
    infos: list[ShardInfo] = []
    problems: list[str] = []
    with ExitStack() as stack:
        index = stack.enter_context(IndexWriter(folder / INDEX, INDEX_SCHEMA))
        bar = stack.enter_context(progress_bar(enabled=progress))
        task = bar.add_task(f"preparing {work.name}", total=len(work.items))
        results = stack.enter_context(closing(prepare_items(work.todo, work.how)))
        for shard in work.shards:
            done: Finished | None
            if shard.size is not None:
                done = finished.load(place, shard.number)
                bar.advance(task, len(shard.items))
            else:
                done = make_shard(
                    results,
                    place,
                    work.how,
                    number=shard.number,
                    items=shard.items,
                    problems=problems,
                    advance=lambda: bar.advance(task),
                )
            if len(problems) >= MAX_PROBLEMS:
                break
            if done is None:
                continue
            if shard.size is None and work.waiting is not None:
                finished.save(place, shard.number, shard.recipe, done)
            infos.append(done["info"])
            work.counts.add(Counts.from_json(done["counts"]))
            index.add(done["rows"])
        raise_problems(problems)
        metadata = _metadata(work, infos, classes)
        index.finish(metadata)
    if work.waiting is not None:
        for info in infos:
            take_over(work.waiting / info["file"], folder)
    summary = {
        "images": len(work.items),
        "labelled": metadata["has_labels"],
        "projection": work.items[0].projection,
        "fov_x_deg": work.items[0].fov_x_deg,
        "digest": sha256_file(folder / INDEX),
    }
    return summary | ({"doubts": metadata["doubts"]} if "doubts" in metadata else {})


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
    items: Sequence[RawItem],
    problems: list[str],
    advance: Callable[[], None] = lambda: None,
) -> Finished | None:
    """Write shard ``number`` into the folder ``place``; None when there is a problem, here or before.

    ``results`` goes on with the results of ``items``. Bad items are added to ``problems``; ``advance`` is called
    after each item.
    """
    # Another run's result may have this name for the same bytes: never write into them.
    (place / shard_name(number)).unlink(missing_ok=True)
    columns: dict[str, tuple[int, ...]] = {"image": (3, how.spec.height, how.spec.width)}
    if items[0].label is not None:
        columns["label"] = (how.spec.height, how.spec.width)
    rows: list[dict[str, Any]] = []
    counts = Counts()
    with ShardWriter(
        place, columns=columns, rows_per_shard=how.shard_images, codec=how.codec, first=number
    ) as writer:
        for result in islice(results, len(items)):
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
