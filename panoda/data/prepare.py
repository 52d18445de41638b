"""Raw files -> a parquet index and memory-mappable Arrow shards of resized images and labels, and statistics.

Images are resized with an antialiased triangle filter, labels by the pixel under each new pixel's centre.
Work goes shard by shard: with a state folder a killed run goes on with the shards it had finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from panoda.data.codec import Codec, check_codec
from panoda.data.contact_sheet import contact_sheet
from panoda.data.dataset import DataError, RawItem
from panoda.data.prepare_item import ItemSpec
from panoda.data.prepare_split import (
    How,
    Result,
    SplitWork,
    cores,
    prepare_items,
    raise_problems,
    write_index,
    write_shards,
)
from panoda.data.prepared import PreparedSplit
from panoda.data.space import check_space, foresee, megabytes
from panoda.data.statistics import write_statistics
from panoda.files import staged_directory, write_json
from panoda.labels import get_label_space, remap_table

CONTACT_SHEET = "contact_sheet.png"


def prepare(
    items: Sequence[RawItem],
    out: Path,
    *,
    height: int,
    width: int,
    label_space_from: str | None,
    label_space_to: str,
    shard_images: int,
    progress: bool,
    codec: Codec = "raw",
    state_dir: Path | None = None,
    workers: int | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Decode, crop, resize, store and count every item; the same input gives the same bytes.

    Neither the number of workers nor a resumed run changes a byte. Memory is constant but for the index
    (3 to 4 kB per image); ``out`` is replaced as a whole at the end, or left as it was.

    Args:
        items: Raw items of all splits.
        out: Folder ``data/prepared/<role>``.
        height: Prepared height in pixels.
        width: Prepared width in pixels.
        label_space_from: Label space of the raw labels; None when there are none.
        label_space_to: Label space of the prepared labels.
        shard_images: Images per shard.
        progress: Show a progress bar.
        codec: How the shards store arrays.
        state_dir: Folder where finished shards wait for a killed run to go on; None to keep none.
        workers: Images worked on at a time; None = every core this process may use.
        say: Told the space it will take, before the work starts.

    Returns:
        The content of ``dataset.json``.

    Raises:
        DataError: bad items; the message names every one (up to 20).
        ValueError: a size that the codec cannot hold.
        OSError: disk full, with what to do.
    """
    check_codec(codec, height=height, width=width)
    splits = _by_split(items)
    space = get_label_space(label_space_to)
    spec = ItemSpec(
        height=height,
        width=width,
        num_classes_from=get_label_space(label_space_from).num_classes if label_space_from else 0,
        num_classes=space.num_classes,
        table=remap_table(label_space_from, label_space_to) if label_space_from else None,
    )
    _check_items(splits, labelled=spec.table is not None)
    how = How(spec, codec, shard_images, workers or cores())
    waiting = None if state_dir is None else state_dir / "shards"
    works = [SplitWork(name, members, how, waiting) for name, members in splits.items()]
    _check_space(works, out, how, waiting, say)
    summary: dict[str, Any] = {
        "label_space": space.name,
        "class_names": list(space.names),
        "raw_label_space": label_space_from,
        "height": height,
        "width": width,
        "codec": codec,
        "splits": {},
    }
    with staged_directory(out) as staged:
        for work in works:
            folder = staged / work.name
            folder.mkdir(parents=True)
            rows = write_shards(work, folder, how, progress=progress)
            summary["splits"][work.name] = write_index(work, folder, rows, how, space=space.name)
        joined = json.dumps(
            {name: part["digest"] for name, part in summary["splits"].items()}, sort_keys=True
        )
        summary["digest"] = hashlib.sha256(joined.encode()).hexdigest()
        write_json(staged / "dataset.json", summary)
        write_statistics(staged, {work.name: work.counts for work in works}, space)
        sheet = contact_sheet({work.name: PreparedSplit(staged / work.name) for work in works})
        Image.fromarray(sheet).save(staged / CONTACT_SHEET)
    return summary


def limited(items: Sequence[RawItem], limit: Mapping[str, int]) -> list[RawItem]:
    """At most ``limit[split]`` items of a split, spread evenly over it; other splits stay whole."""
    kept: list[RawItem] = []
    for split, found in _by_split(items).items():
        count = min(limit.get(split, len(found)), len(found))
        kept += [found[i * len(found) // count] for i in range(count)]
    return kept


def _by_split(items: Sequence[RawItem]) -> dict[str, list[RawItem]]:
    splits: dict[str, list[RawItem]] = {}
    for item in items:
        splits.setdefault(item.split, []).append(item)
    return splits


def _check_items(splits: dict[str, list[RawItem]], *, labelled: bool) -> None:
    """Everything that can be found out without decoding."""
    if not splits:
        raise DataError("there is nothing to prepare: the data set has no images")
    problems: list[str] = []
    for split, members in splits.items():
        first: dict[str, Path] = {}
        for item in members:
            if item.id in first:
                problems.append(f"{item.image}: split {split} already has id {item.id!r} ({first[item.id]})")
            first.setdefault(item.id, item.image)
            files = (item.image,) if item.label is None else (item.image, item.label)
            problems += [f"{path}: no such file" for path in files if not path.is_file()]
        without = [item.image for item in members if item.label is None]
        if without and len(without) < len(members):
            problems.append(f"{without[0]}: split {split} has labels for some images only")
        if len(without) < len(members) and not labelled:
            problems.append(f"{members[0].image}: has a label, but the data set has no label space")
        if len({(i.projection, i.fov_x_deg >= 360) for i in members}) > 1:
            problems.append(f"split {split} mixes projections; make it two splits")
    raise_problems(problems)


def _check_space(
    works: list[SplitWork],
    out: Path,
    how: How,
    waiting: Path | None,
    say: Callable[[str], None] | None,
) -> None:
    """Say what it will take, and refuse what cannot fit."""

    def trial(items: Sequence[RawItem]) -> list[int]:
        results = prepare_items(list(items), how)
        return [r.stored for r in results if isinstance(r, Result)]

    spec, done = how.spec, [s.finished for w in works for s in w.shards if s.finished is not None]
    todo = {work.name: work.todo for work in works}
    need = foresee(todo, height=spec.height, width=spec.width, codec=how.codec, trial=trial)
    kept = sum(shard["info"]["bytes"] for shard in done)
    free = check_space(out, need, also=waiting, kept=kept)
    if say is not None:
        total, left = sum(len(work.items) for work in works), sum(len(members) for members in todo.values())
        resumed = f"; {total - left} of {total} images were finished before" if done else ""
        say(
            f"{out}: {left} images of {spec.height} x {spec.width} ({how.codec}) will take about {need}, "
            f"{megabytes(free)} are free{resumed}"
        )
