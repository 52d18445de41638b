"""Pseudo-labels of a prepared split: label and confidence in shards beside the images, never with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from panoda.data.dataset import DataError
from panoda.data.index import FORMAT, METADATA_KEY, read_index
from panoda.data.prepared import PreparedSplit, Sample
from panoda.data.shards import ShardReader, ShardWriter
from panoda.files import explain_disk_full, sha256_file

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


class PseudoSample(Sample):
    """A ``Sample`` whose label is a pseudo-label.

    Attributes:
        confidence: (H, W) uint8, confidence * 255, also where the label is 255.
    """

    confidence: Tensor


class PseudoLabelWriter:
    """Write label and confidence of each image of a split, in any order.

    Use it as a context manager; the index is written on a clean exit only, so a folder left behind by an
    error is never taken for a result.

    Args:
        folder: Existing folder; the caller stages it.
        prepared: The split that is labelled.
        shard_images: Images per shard.
    """

    def __init__(self, folder: Path, prepared: PreparedSplit, *, shard_images: int = 256) -> None:
        """Remember the split; nothing is written before the first image."""
        self.folder = folder
        self._prepared = prepared
        self._wanted = set(prepared.ids)
        self._rows: list[dict[str, object]] = []
        shape = (prepared.height, prepared.width)
        self._writer = ShardWriter(
            folder, columns={"label": shape, "confidence": shape}, rows_per_shard=shard_images
        )

    def __enter__(self) -> PseudoLabelWriter:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the shards, and write the index unless there was an error."""
        with explain_disk_full(self.folder):
            self._writer.close()
            if kind is None:
                self._write_index()

    def add(self, name: str, label: Tensor | np.ndarray, confidence: Tensor | np.ndarray) -> None:
        """Store one image.

        Args:
            name: Item id.
            label: (H, W) uint8 train ids or 255.
            confidence: (H, W) uint8, confidence * 255.

        Raises:
            ValueError: unknown or repeated id, wrong shape or dtype, or a label outside the label space.
        """
        if name not in self._wanted:
            raise ValueError(f"{self._prepared.folder} has no image {name!r}, or it was added before")
        row = {"label": _array(label), "confidence": _array(confidence)}
        counts = np.bincount(row["label"].ravel(), minlength=256)
        k = self._prepared.num_classes
        if row["label"].dtype == np.uint8 and counts[k:255].any():
            raise ValueError(f"{name}: labels above {k - 1} that are not 255")
        with explain_disk_full(self.folder):
            shard, place, crc = self._writer.append(row)
        self._wanted.remove(name)
        self._rows.append(
            {
                "id": name,
                "shard": shard,
                "row": place,
                "crc32": crc,
                "kept_pixels": int(counts[:k].sum()),
                "class_pixels": counts[:k].tolist(),
            }
        )

    def _write_index(self) -> None:
        if self._wanted:
            example = min(self._wanted)
            raise ValueError(
                f"{self.folder}: {len(self._wanted)} images have no pseudo-label, such as {example!r}"
            )
        metadata = {
            "format": FORMAT,
            "label_space": self._prepared.label_space,
            "height": self._prepared.height,
            "width": self._prepared.width,
            "prepared_digest": self._prepared.digest,
            "shards": self._writer.shards,
        }
        schema = _INDEX_SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
        pq.write_table(pa.Table.from_pylist(self._rows, schema=schema), self.folder / "index.parquet")


class PseudoLabelSplit:
    """The images of a prepared split with pseudo-labels instead of labels.

    Has the attributes of ``PreparedSplit``; ``class_pixels`` and ``digest`` are those of the pseudo-labels.

    Args:
        prepared: The images.
        folder: Folder written by ``PseudoLabelWriter``.

    Raises:
        DataError: missing, truncated or corrupt files, or pseudo-labels of another preparation.
    """

    def __init__(self, prepared: PreparedSplit, folder: Path) -> None:
        """Read the index; shards are opened on first use."""
        self.prepared = prepared
        self.folder = folder
        table, metadata = read_index(folder)
        if metadata.get("prepared_digest") != prepared.digest:
            raise DataError(
                f"{folder}: made for other images than {prepared.folder} holds now; "
                "run stage pseudo_labels again"
            )
        self.label_space = prepared.label_space
        self.num_classes = prepared.num_classes
        self.height, self.width = prepared.height, prepared.width
        self.projection = prepared.projection
        self.fov_x_deg = prepared.fov_x_deg
        self.lat_top_deg, self.lat_bottom_deg = prepared.lat_top_deg, prepared.lat_bottom_deg
        self.full_circle = prepared.full_circle
        self.has_labels = True
        self.ids = prepared.ids
        self.class_pixels = np.array(table["class_pixels"].to_pylist(), dtype=np.int64).sum(axis=0)
        own = sha256_file(folder / "index.parquet")
        self.digest = hashlib.sha256((prepared.digest + own).encode()).hexdigest()
        shape = (self.height, self.width)
        self._reader = ShardReader(
            folder, columns={"label": shape, "confidence": shape}, shards=metadata["shards"]
        )
        rows = table.select(["id", "shard", "row", "crc32"]).to_pylist()
        self._places = {r["id"]: (r["shard"], r["row"], r["crc32"]) for r in rows}
        missing = [name for name in self.ids if name not in self._places]
        if missing:
            raise DataError(f"{folder}: no pseudo-label of {missing[0]!r}; run stage pseudo_labels again")

    @property
    def sampling(self) -> tuple[tuple[int, float], ...]:
        """(length, weight) of its one part, for the loader."""
        return self.prepared.sampling

    def wraps(self, index: int) -> bool:
        """Columns of sample ``index`` wrap around; the same for all."""
        return self.full_circle

    def __len__(self) -> int:
        """Number of images."""
        return len(self.prepared)

    def __getitem__(self, index: int) -> PseudoSample:
        """Sample ``index``; its tensors are copies that may be changed in place."""
        sample = self.prepared[index]
        arrays = self._reader.read(*self._places[sample["id"]])
        return PseudoSample(
            image=sample["image"],
            label=torch.from_numpy(arrays["label"]),
            valid=sample["valid"],
            confidence=torch.from_numpy(arrays["confidence"]),
            id=sample["id"],
            index=sample["index"],
        )


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values
