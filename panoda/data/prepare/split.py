"""One split of a data set: its shards put together, and their index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from panoda.data.formats.dataset import RawItem
from panoda.data.loading.index import CODEC_FORMAT, FORMAT, INDEX, IndexWriter
from panoda.data.loading.shards import ShardInfo
from panoda.data.prepare.pieces import PrepareConfig, read_shard
from panoda.data.prepare.plausible import doubts, known_ids
from panoda.data.prepare.statistics import Counts
from panoda.labels import IGNORE_INDEX
from panoda.system.files import sha256_file, take_over

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


def write_split(
    name: str,
    items: Sequence[RawItem],
    config: PrepareConfig,
    shards: Sequence[Path],
    folder: Path,
    *,
    classes: Mapping[str, Any],
) -> tuple[dict[str, Any], Counts]:
    """Take the shards of a split over into ``folder``, and write the index.

    Args:
        shards: Folders of the finished shards, in order (``panoda.data.prepare.pieces``).

    Returns:
        What dataset.json says of the split, and what was counted in it.
    """
    infos: list[ShardInfo] = []
    counts = Counts()
    with IndexWriter(folder / INDEX, INDEX_SCHEMA) as index:
        for place in shards:
            made = read_shard(place)
            infos.append(made["info"])
            counts.add(Counts.from_json(made["counts"]))
            index.add(made["rows"])
            take_over(place / made["info"]["file"], folder)
        metadata = {
            "format": FORMAT,
            **classes,
            "height": config.spec.height,
            "width": config.spec.width,
            "has_labels": items[0].label is not None,
            "shards": infos,
        }
        if config.codec != "raw":
            metadata |= {"format": CODEC_FORMAT, "codec": config.codec}
        found = _suspicions(name, items[0], config, counts, classes["class_names"])
        noted = {"doubts": found} if found else {}
        index.finish(metadata | noted)
    summary = {
        "images": len(items),
        "labelled": metadata["has_labels"],
        "projection": items[0].projection,
        "fov_x_deg": items[0].fov_x_deg,
        "digest": sha256_file(folder / INDEX),
    }
    return summary | noted, counts


def _suspicions(
    name: str, first: RawItem, config: PrepareConfig, counts: Counts, names: Sequence[str]
) -> list[str]:
    """What is suspicious about the prepared labels of a split (``panoda.data.prepare.plausible``)."""
    spec = config.spec
    if first.label is None or spec.table is None:
        return []
    reached = {int(spec.table[k]) for k in known_ids(first.encoding, spec.num_classes_from)}
    return doubts(
        counts.labels[: spec.num_classes],
        int(counts.labels[IGNORE_INDEX]),
        counts.images,
        names=names,
        possible=reached - {IGNORE_INDEX},
        in_part=IGNORE_INDEX in reached or (first.encoding is not None and first.encoding.others == "ignore"),
        missing=name == "train",
    )
