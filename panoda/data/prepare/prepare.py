"""Raw files -> a parquet index and memory-mappable Arrow shards of resized images and labels, and statistics.

Images are resized with an antialiased triangle filter, labels by the pixel under each new pixel's centre.
Work goes shard by shard: with a state folder a killed run goes on with the shards it had finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from panoda.data.formats.dataset import RawItem
from panoda.data.loading.codec import Codec, check_codec
from panoda.data.prepare.contact_sheet import contact_sheet
from panoda.data.prepare.item import ItemSpec
from panoda.data.prepare.pieces import PrepareConfig, make_shards, raise_problems
from panoda.data.prepare.split import write_split
from panoda.data.prepare.statistics import write_statistics
from panoda.geometry.erp import is_full_circle
from panoda.labels import LabelSpace, get_label_space, remap_report, remap_table
from panoda.system.context import RunContext
from panoda.system.errors import DataError
from panoda.system.files import staged_directory, write_json
from panoda.system.machine import cores
from panoda.system.pieces import Runner, work_folder

CONTACT_SHEET = "contact_sheet.png"
WEBP_SHARE = 0.5
"""Compressed size of photographs and labels relative to raw ones, at most as a rule (docs/benchmarks.md)."""
RESERVE = 0.02
"""Share added for indices, notes and the file system."""


def prepare(
    items: Iterable[RawItem],
    out: Path,
    *,
    height: int,
    width: int,
    label_space_from: str | None,
    label_space_to: str,
    shard_images: int,
    progress: bool,
    codec: Codec = "raw",
    limit: Mapping[str, int] | None = None,
    state_dir: Path | None = None,
    workers: int | None = None,
    fan_out: Runner | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Decode, crop, resize, store and count every item; the same input gives the same bytes.

    Neither the number of workers nor a resumed run changes a byte. Pixels are in memory for a few images at a
    time; ``out`` is replaced as a whole at the end, or left as it was.

    Args:
        out: Folder ``data/prepared/<role>``.
        label_space_from: Label space of the raw labels; None when there are none.
        label_space_to: Label space of the prepared labels.
        limit: Split name -> at most so many of its items, spread evenly over it; others stay whole.
        state_dir: Folder where finished shards wait for a killed run to go on; None to keep none.
        workers: Images worked on at a time; None = every core this process may use.
        fan_out: Who makes the shards; None = this process.
        cache: Folder in which DVC will keep a second copy; None = no copy.

    Returns:
        The content of ``dataset.json``.

    Raises:
        DataError: bad items; the message names every one (up to 20).
        ValueError: a size that the codec cannot hold.
        OSError: disk full, with what to do.
    """
    check_codec(codec, height=height, width=width)
    space = get_label_space(label_space_to)
    spec = ItemSpec(
        height=height,
        width=width,
        num_classes_from=get_label_space(label_space_from).num_classes if label_space_from else 0,
        num_classes=space.num_classes,
        table=remap_table(label_space_from, label_space_to) if label_space_from else None,
    )
    # 0: a worker of a cluster takes the cores it may use.
    config = PrepareConfig(spec, codec, shard_images, 0 if fan_out else workers or cores())
    splits = _checked_splits(items, limit or {}, labelled=spec.table is not None)
    context = RunContext(state_dir=state_dir, progress=progress, fan_out=fan_out)
    summary: dict[str, Any] = {
        **_classes(space, label_space_from),
        "height": height,
        "width": width,
        "codec": codec,
        "splits": {},
    }
    finished = () if state_dir is None else state_dir.rglob("shard-*.arrow")
    kept = sum(path.stat().st_size for path in finished)
    check_space(out, _needed(splits, config), kept=kept, cache=cache)
    with work_folder(context, out) as place:
        shards = {
            name: make_shards(name, members, config, place, context) for name, members in splits.items()
        }
        with staged_directory(out) as staged:
            _write(splits, config, shards, staged, summary, space)
    return summary


def _classes(space: LabelSpace, raw: str | None) -> dict[str, Any]:
    """The prepared classes and what became of the raw ones: whoever reads them needs no label space file."""
    remap = None if raw is None else json.loads(json.dumps(asdict(remap_report(raw, space.name))))
    return {
        "label_space": space.name,
        "class_names": list(space.names),
        "palette": [list(colour) for colour in space.palette],
        "raw_label_space": raw,
        "remap": remap,
    }


def _write(
    splits: Mapping[str, Sequence[RawItem]],
    config: PrepareConfig,
    shards: Mapping[str, Sequence[Path]],
    staged: Path,
    summary: dict[str, Any],
    space: LabelSpace,
) -> None:
    """Everything that ``prepare`` leaves behind; completes the summary."""
    classes = {key: summary[key] for key in _classes(space, None)}
    counts = {}
    for name, members in splits.items():
        folder = staged / name
        folder.mkdir(parents=True)
        part, counts[name] = write_split(name, members, config, shards[name], folder, classes=classes)
        summary["splits"][name] = part
    joined = json.dumps({name: part["digest"] for name, part in summary["splits"].items()}, sort_keys=True)
    summary["digest"] = hashlib.sha256(joined.encode()).hexdigest()
    write_json(staged / "dataset.json", summary)
    write_statistics(staged, counts, space)
    Image.fromarray(contact_sheet([staged / name for name in splits], space)).save(staged / CONTACT_SHEET)


def _checked_splits(
    items: Iterable[RawItem], limit: Mapping[str, int], *, labelled: bool
) -> dict[str, list[RawItem]]:
    """Items by split, reduced to ``limit``, after a check of all that can be found out without decoding."""
    splits: dict[str, list[RawItem]] = {}
    first: dict[tuple[str, str], RawItem] = {}
    problems: list[str] = []
    for item in items:
        other = first.setdefault((item.split, item.id), item)
        if other is not item:
            problems.append(
                f"{item.image}: split {item.split} already has id {item.id!r} ({other.image}); rename one"
            )
        splits.setdefault(item.split, []).append(item)
    if not splits:
        raise DataError("there is nothing to prepare: the data set has no images")
    for name, found in splits.items():
        count = min(limit.get(name, len(found)), len(found))
        splits[name] = [found[i * len(found) // count] for i in range(count)]
        problems += _problems_of(name, splits[name], labelled=labelled)
    raise_problems(problems)
    return splits


def _problems_of(split: str, items: Sequence[RawItem], *, labelled: bool) -> Iterator[str]:
    for item in items:
        for path in (item.image, item.label):
            if path is not None and not path.is_file():
                yield f"{path}: no such file"
    with_label = next((item for item in items if item.label is not None), None)
    without_label = next((item for item in items if item.label is None), None)
    if with_label and without_label:
        yield f"{without_label.image}: split {split} has labels for some images only"
    if with_label and not labelled:
        yield f"{with_label.image}: has a label, but the data set has no label space"
    if len({(item.projection, is_full_circle(item.projection, item.fov_x_deg)) for item in items}) > 1:
        yield f"split {split} mixes projections; make it two splits"


def _needed(splits: Mapping[str, Sequence[RawItem]], config: PrepareConfig) -> int:
    """Bytes of the splits' images and labels: exact for codec raw, an upper estimate for webp."""
    images, labels = sum(map(len, splits.values())), sum(len(s) for s in splits.values() if s[0].label)
    raw = config.spec.height * config.spec.width * (3 * images + labels)
    return raw if config.codec == "raw" else round(WEBP_SHARE * raw)


def check_space(out: Path, need: int, *, kept: int, cache: Path | None) -> None:
    """Fail early when the result exceeds the free disk space.

    Args:
        need: Bytes of the result.
        kept: Bytes of it that are finished and lie on that disk.
        cache: Where DVC will keep a second copy of all of it; None for no copy.

    Raises:
        OSError: disk full.
    """
    here, copy = _existing(out), None if cache is None else _existing(cache)
    wanted, note = {here: max(need - kept, 0)}, ""
    if copy is not None:
        same = copy.stat().st_dev == here.stat().st_dev
        wanted[here if same else copy] = need + (wanted[here] if same else 0)
        note = (
            f" (DVC's copy in {cache} counts; `dvc config cache.type reflink,hardlink,copy` does without it)"
        )
    for where, size in wanted.items():
        left = shutil.disk_usage(where).free
        if left < (1 + RESERVE) * size:
            raise OSError(
                errno.ENOSPC,
                f"disk full: {out} needs about {megabytes(size)} in {where}{note}, {megabytes(left)} are "
                "free; free some space, lower prepare.height and prepare.width, or compress with "
                "prepare.codec: webp",
            )


def megabytes(size: float) -> str:
    """A readable number of bytes, in steps of 1000."""
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())
