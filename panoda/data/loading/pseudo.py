"""Pseudo-labels of a prepared split: label and confidence in shards beside the images, never with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from panoda.data.loading.index import FORMAT, INDEX, IndexWriter, read_index, read_metadata
from panoda.data.loading.prepared import PreparedSplit, Sample
from panoda.data.loading.shards import ShardInfo, ShardReader, ShardWriter
from panoda.system.errors import DataError
from panoda.system.files import explain_disk_full, sha256_file, take_over

PROTOTYPE_SUMS = "prototype_sums.safetensors"
"""File beside pseudo-labels, on demand: total (K, D) float64 and images (K,) int64 of the target for stage
prototypes, and in its metadata (JSON under ``about``) the SHA-256 of the model and the scales."""
_INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("crc32", pa.int64()),
        ("kept_pixels", pa.int64()),
        ("class_pixels", pa.list_(pa.int64())),
    ]
)


class PseudoLabelWriter:
    """Write label and confidence of each image of a split, in their order.

    Use it as a context manager; the index is written on a clean exit only, so a folder left behind by an
    error is never taken for a result.

    Args:
        folder: Existing folder; the caller stages it.
        images: Positions of the images to come, when they are a piece of the split; None = all.
        first: Number of the first shard.
    """

    def __init__(
        self,
        folder: Path,
        prepared: PreparedSplit,
        *,
        shard_images: int = 256,
        images: range | None = None,
        first: int = 0,
    ) -> None:
        self.folder = folder
        self._prepared = prepared
        self._ids = prepared.ids_of(images or range(len(prepared)))
        self._rows: list[dict[str, Any]] = []
        self._writer = ShardWriter(
            folder, columns=_columns(prepared), rows_per_shard=shard_images, first=first
        )

    def __enter__(self) -> PseudoLabelWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Finish the shards, and write the index unless there was an error."""
        with explain_disk_full(self.folder):
            self._writer.close()
            if kind is None:
                self._write_index()

    def add(self, name: str, label: Tensor | np.ndarray, confidence: Tensor | np.ndarray) -> None:
        """Store one image.

        Args:
            label: (H, W) uint8 train ids or 255.
            confidence: (H, W) uint8, confidence * 255.

        Raises:
            ValueError: another image than the next one, or wrong shape or dtype.
        """
        expected = next(iter(self._ids[len(self._rows) :]), None)
        if name != expected:
            raise ValueError(f"{self._prepared.folder}: the next image is {expected!r}, not {name!r}")
        row = {"label": _array(label), "confidence": _array(confidence)}
        with explain_disk_full(self.folder):
            shard, place, crc = self._writer.append(row)
        counts = np.bincount(row["label"].ravel(), minlength=256)[: self._prepared.num_classes]
        self._rows.append(
            {
                "id": name,
                "shard": shard,
                "row": place,
                "crc32": crc,
                "kept_pixels": int(counts.sum()),
                "class_pixels": counts.tolist(),
            }
        )

    def _write_index(self) -> None:
        if missing := self._ids[len(self._rows) :]:
            raise ValueError(
                f"{self.folder}: {len(missing)} images have no pseudo-label, such as {missing[0]!r}"
            )
        with IndexWriter(self.folder / INDEX, _INDEX_SCHEMA) as index:
            index.add(self._rows)
            index.finish(_metadata(self._prepared, self._writer.shards))


def stored_labels(
    folder: Path, prepared: PreparedSplit, rows: range
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Id, label and confidence of ``rows`` of a folder, which may hold a piece of the split, in its order.

    Raises:
        DataError: missing or corrupt files.
    """
    table, metadata = read_index(folder)
    shards: list[ShardInfo] = metadata["shards"]
    reader = ShardReader(folder, columns=_columns(prepared), shards=shards)
    first = table["shard"][0].as_py()
    places = table.select(["id", "shard", "row", "crc32"]).slice(rows.start, len(rows))
    for row in places.to_pylist():
        arrays = reader.read(row["shard"] - first, row["row"], row["crc32"])
        yield row["id"], arrays["label"], arrays["confidence"]


def join_pieces(pieces: Sequence[Path], out: Path, prepared: PreparedSplit) -> None:
    """Make one result of pieces, each written with ``images`` and the next ``first``, in their order.

    Shards are taken over as they are. The index is joined shard by shard, in constant memory: how many of
    them a piece holds decides no byte.
    """
    shards: list[ShardInfo] = []
    with IndexWriter(out / INDEX, _INDEX_SCHEMA) as index:
        for piece in pieces:
            table, metadata = read_index(piece)
            start = 0
            for shard in metadata["shards"]:
                index.add(table.slice(start, shard["rows"]).to_pylist())
                start += shard["rows"]
            shards += metadata["shards"]
        index.finish(_metadata(prepared, shards))
    for piece in pieces:
        for shard in read_metadata(piece)["shards"]:
            take_over(piece / shard["file"], out)


def _columns(prepared: PreparedSplit) -> dict[str, tuple[int, ...]]:
    shape = (prepared.height, prepared.width)
    return {"label": shape, "confidence": shape}


def _metadata(prepared: PreparedSplit, shards: list[ShardInfo]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "label_space": prepared.label_space,
        "height": prepared.height,
        "width": prepared.width,
        "prepared_digest": prepared.digest,
        "shards": shards,
    }


class PseudoLabelSplit(PreparedSplit):
    """The images of a prepared split with pseudo-labels instead of labels.

    ``class_pixels`` and ``digest`` are those of the pseudo-labels.

    Raises:
        DataError: missing, truncated or corrupt files, or pseudo-labels of another preparation.
    """

    def __init__(self, prepared: PreparedSplit, folder: Path) -> None:
        vars(self).update(vars(prepared))
        self.prepared = prepared
        self.folder = folder
        table, metadata = read_index(folder)
        if metadata.get("prepared_digest") != prepared.digest or not prepared.has_ids(table["id"]):
            raise DataError(
                f"{folder}: made for other images than {prepared.folder} holds now; "
                "run stage pseudo_labels again"
            )
        self.has_labels = True
        pixels = pc.list_flatten(table["class_pixels"]).to_numpy()
        self.class_pixels = pixels.reshape(-1, self.num_classes).sum(axis=0)
        own = sha256_file(folder / INDEX)
        self.digest = hashlib.sha256((prepared.digest + own).encode()).hexdigest()
        self._pseudo_reader = ShardReader(folder, columns=_columns(prepared), shards=metadata["shards"])
        self._pseudo_places = np.stack([table[name].to_numpy() for name in ("shard", "row", "crc32")], axis=1)

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; its tensors are copies that may be changed in place."""
        sample = self.prepared[index]
        arrays = self._pseudo_reader.read(*self._pseudo_places[sample["index"]].tolist())
        return Sample(**{**sample, "label": torch.from_numpy(arrays["label"])})


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values
