"""Raw files -> a parquet index and memory-mappable Arrow shards of decoded, resized images and labels."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from panoda.data.dataset import DataError, RawItem
from panoda.data.images import read_ids, read_rgb
from panoda.data.prepared import FORMAT, METADATA_KEY
from panoda.data.shards import ShardWriter, explain_disk_full
from panoda.files import sha256_file, staged_directory, write_json
from panoda.labels import IGNORE_INDEX, get_label_space, remap_table
from panoda.progress import progress_bar

MIN_SIDE = 32
"""Smallest height or width in pixels of an image after its crop."""
MAX_ENLARGEMENT = 4.0
"""An image that would have to be enlarged more than this is refused: it holds no detail to learn."""
MAX_PROBLEMS = 20
"""Bad files listed in one message before giving up."""


@dataclass(frozen=True)
class _Spec:
    """What one worker needs besides the item."""

    height: int
    width: int
    num_classes_from: int
    num_classes: int
    table: np.ndarray | None


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
    spec = _Spec(
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
    with explain_disk_full(out), staged_directory(out) as staged:
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
    items: list[RawItem], folder: Path, spec: _Spec, *, space: str, shard_images: int, progress: bool
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
    items: list[RawItem], spec: _Spec
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


def _try_one(item: RawItem, spec: _Spec) -> tuple[dict[str, np.ndarray], dict[str, Any]] | DataError:
    try:
        return _prepare_one(item, spec)
    except DataError as error:
        return error


def _prepare_one(item: RawItem, spec: _Spec) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    image = read_rgb(item.image)
    box = _crop_box(item, image.size, spec)
    size = (spec.width, spec.height)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    arrays = {"image": np.ascontiguousarray(pixels.transpose(2, 0, 1))}
    valid_rows = math.floor(spec.height * (1 - item.ignore_bottom) + 1e-9)
    class_pixels = None
    if item.label is not None:
        label = _read_label(item, image.size, box, spec)
        label[valid_rows:] = IGNORE_INDEX
        arrays["label"] = label
        class_pixels = np.bincount(label.ravel(), minlength=256)[: spec.num_classes].tolist()
    span = item.lat_top_deg - item.lat_bottom_deg
    row = {
        "id": item.id,
        "split": item.split,
        "group": item.group,
        "projection": item.projection,
        "fov_x_deg": item.fov_x_deg,
        "lat_top_deg": item.lat_top_deg - item.crop_top * span,
        "lat_bottom_deg": item.lat_bottom_deg + item.crop_bottom * span,
        "raw_height": image.height,
        "raw_width": image.width,
        "height": spec.height,
        "width": spec.width,
        "valid_rows": valid_rows,
        "image_sha256": sha256_file(item.image),
        "label_sha256": sha256_file(item.label) if item.label is not None else None,
        "class_pixels": class_pixels,
    }
    return arrays, row


def _crop_box(item: RawItem, size: tuple[int, int], spec: _Spec) -> tuple[int, int, int, int]:
    """Pillow box (left, top, right, bottom) of what remains after the vertical crop."""
    width, height = size
    top, bottom = round(height * item.crop_top), height - round(height * item.crop_bottom)
    kept = bottom - top
    least_h = max(MIN_SIDE, math.ceil(spec.height / MAX_ENLARGEMENT))
    least_w = max(MIN_SIDE, math.ceil(spec.width / MAX_ENLARGEMENT))
    if kept < least_h or width < least_w:
        raise DataError(
            f"{item.image}: too small: {max(kept, 0)} x {width} pixels (height x width) after the crop, "
            f"expected at least {least_h} x {least_w} for a prepared size of {spec.height} x {spec.width}; "
            "use a larger image, a smaller prepared size or a smaller crop"
        )
    return (0, top, width, bottom)


def _read_label(
    item: RawItem, size: tuple[int, int], box: tuple[int, int, int, int], spec: _Spec
) -> np.ndarray:
    assert item.label is not None and spec.table is not None
    ids = read_ids(item.label)
    if ids.shape != (size[1], size[0]):
        raise DataError(
            f"{item.label}: label of {ids.shape[0]} x {ids.shape[1]} pixels (height x width), but its image "
            f"{item.image} has {size[1]} x {size[0]}; both must have one size"
        )
    known = np.zeros(65536, dtype=bool)
    known[: spec.num_classes_from] = True
    known[list(item.void_ids)] = True
    bad = (ids < 0) | (ids > 65535) | ~known[ids & 0xFFFF]
    if bad.any():
        values, counts = np.unique(ids[bad], return_counts=True)
        listed = ", ".join(f"{v} ({n} pixels)" for v, n in zip(values[:10], counts[:10], strict=True))
        void = ", ".join(str(v) for v in item.void_ids)
        raise DataError(
            f"{item.label}: label ids outside the space: {listed}; expected 0..{spec.num_classes_from - 1}, "
            f"or {void} for unlabelled"
        )
    table = np.full(65536, IGNORE_INDEX, dtype=np.uint8)
    table[: spec.num_classes_from] = spec.table[: spec.num_classes_from]
    image = Image.fromarray(table[ids])
    return np.array(image.resize((spec.width, spec.height), Image.Resampling.NEAREST, box=box))
