"""Raw files -> a parquet index and memory-mappable Arrow shards of decoded, resized images and labels."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoda.data.dataset import DataError, RawItem
from panoda.data.prepare_item import ItemSpec, prepare_item
from panoda.data.prepared import FORMAT, METADATA_KEY
from panoda.data.shards import ShardWriter
from panoda.files import sha256_file, staged_directory, write_json
from panoda.labels import get_label_space, remap_table
from panoda.progress import progress_bar

MAX_PROBLEMS = 20
"""Bad files listed in one message before giving up."""


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
) -> dict[str, Any]:
    """Decode, crop, resize and store every item; the same input gives the same bytes.

    Images are resized with antialiased bilinear, labels with nearest. Memory is constant; ``out`` is
    replaced as a whole at the end, or left as it was.

    Args:
        items: Raw items of all splits.
        out: Folder ``data/prepared/<role>``.
        height: Prepared height in pixels.
        width: Prepared width in pixels.
        label_space_from: Label space of the raw labels; None when there are none.
        label_space_to: Label space of the prepared labels.
        shard_images: Images per shard.
        progress: Show a progress bar.

    Returns:
        The content of ``dataset.json``.

    Raises:
        DataError: bad items; the message names every one (up to 20).
        OSError: disk full, with what to do.
    """
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
    _check_space(items, out, height=height, width=width)
    summary: dict[str, Any] = {
        "label_space": space.name,
        "class_names": list(space.names),
        "raw_label_space": label_space_from,
        "height": height,
        "width": width,
        "splits": {},
    }
    with staged_directory(out) as staged:
        for split, members in splits.items():
            folder = staged / split
            folder.mkdir(parents=True)
            summary["splits"][split] = _prepare_split(
                members, folder, spec, space=space.name, shard_images=shard_images, progress=progress
            )
        joined = json.dumps(
            {name: part["digest"] for name, part in summary["splits"].items()}, sort_keys=True
        )
        summary["digest"] = hashlib.sha256(joined.encode()).hexdigest()
        write_json(staged / "dataset.json", summary)
    return summary


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
    _raise(problems)


def _check_space(items: Sequence[RawItem], out: Path, *, height: int, width: int) -> None:
    """Refuse before an hour of work what cannot fit."""
    needed = sum(height * width * (3 if item.label is None else 4) for item in items)
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"disk full: {out} needs about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
            "free some space or lower prepare.height and prepare.width",
        )


def _raise(problems: list[str]) -> None:
    if not problems:
        return
    listed = "\n".join(f"  {problem}" for problem in problems[:MAX_PROBLEMS])
    more = len(problems) - MAX_PROBLEMS
    tail = f"\n  ... and {more} more" if more > 0 else ""
    raise DataError(f"{len(problems)} problem(s) in the raw data; nothing was written\n{listed}{tail}")


def _prepare_split(
    items: list[RawItem], folder: Path, spec: ItemSpec, *, space: str, shard_images: int, progress: bool
) -> dict[str, Any]:
    has_labels = items[0].label is not None
    columns: dict[str, tuple[int, ...]] = {"image": (3, spec.height, spec.width)}
    if has_labels:
        columns["label"] = (spec.height, spec.width)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    with (
        ShardWriter(folder, columns=columns, rows_per_shard=shard_images) as writer,
        progress_bar(enabled=progress) as bar,
    ):
        for result in bar.track(
            _parallel(items, spec), total=len(items), description=f"preparing {items[0].split}"
        ):
            if isinstance(result, DataError):
                problems.append(str(result))
                if len(problems) == MAX_PROBLEMS:
                    break
            elif not problems:
                arrays, row = result
                row["shard"], row["row"], row["crc32"] = writer.append(arrays)
                rows.append(row)
    _raise(problems)
    metadata = {
        "format": FORMAT,
        "label_space": space,
        "height": spec.height,
        "width": spec.width,
        "has_labels": has_labels,
        "shards": writer.shards,
    }
    path = folder / "index.parquet"
    schema = _INDEX_SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return {
        "images": len(rows),
        "labelled": has_labels,
        "projection": items[0].projection,
        "fov_x_deg": items[0].fov_x_deg,
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


def _parallel(
    items: list[RawItem], spec: ItemSpec
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]] | DataError]:
    """Results in the order of the items; a bounded number is under way, so memory stays constant."""
    # Threads, not processes: Pillow and hashlib work outside the interpreter lock.
    workers = max(
        1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(_try_one, item, spec))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _try_one(item: RawItem, spec: ItemSpec) -> tuple[dict[str, np.ndarray], dict[str, Any]] | DataError:
    try:
        return prepare_item(item, spec)
    except DataError as error:
        return error
