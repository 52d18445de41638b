"""One prepared split: random access to decoded images and labels, through a memory map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from panoda.data.codec import Codec
from panoda.data.dataset import DataError, Projection
from panoda.data.shards import Columns, ShardReader
from panoda.files import sha256_file
from panoda.labels import IGNORE_INDEX, get_label_space

FORMAT = 1
"""Version of the layout of index.parquet and its raw shards."""
CODEC_FORMAT = 2
"""The same with shards in the codec that the index names."""
METADATA_KEY = b"panoda"
"""Key of the JSON in the parquet schema's metadata."""


class Sample(TypedDict):
    """One image with its label.

    Attributes:
        image: (3, H, W) uint8 RGB.
        label: (H, W) uint8 train ids, 255 where unlabelled; all 255 when the split has no labels.
        valid: (H, W) bool, False in the ignore band.
        id: Item id.
        index: Position in the split.
    """

    image: Tensor
    label: Tensor
    valid: Tensor
    id: str
    index: int


class PreparedSplit:
    """A split written by ``panoda.data.prepare``; needs nothing outside its own folder.

    Args:
        folder: ``data/prepared/<role>/<split>``.

    Attributes:
        index: One row per image: id, group, sizes, hashes (see ``prepare``).
        label_space: Name of the label space.
        num_classes: K.
        ids: Item ids by position.
        height: Image height in pixels.
        width: Image width in pixels.
        projection: 'pinhole' or 'erp'.
        fov_x_deg: Horizontal field of view in degrees; the median where images differ.
        lat_top_deg: Latitude of the upper edge in degrees; nan for pinhole; the median where images differ.
        lat_bottom_deg: Latitude of the lower edge in degrees, likewise.
        full_circle: The width covers 360 degrees, so columns wrap around.
        has_labels: Labels exist.
        codec: How the shards store arrays.
        class_pixels: (K,) int64 labelled pixels per class.
        digest: SHA-256 over the index, which holds the hashes of raw files and shards.

    Raises:
        DataError: missing, truncated or corrupt files.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index; shards are opened on first use."""
        self.folder = folder
        table, metadata = read_index(folder)
        self.index: pd.DataFrame = table.to_pandas()
        self.label_space: str = metadata["label_space"]
        self.num_classes = get_label_space(self.label_space).num_classes
        self.height: int = metadata["height"]
        self.width: int = metadata["width"]
        self.has_labels: bool = metadata["has_labels"]
        self.projection = cast(Projection, str(self.index["projection"].iloc[0]))
        self.fov_x_deg = float(self.index["fov_x_deg"].median())
        self.lat_top_deg = float(self.index["lat_top_deg"].median())
        self.lat_bottom_deg = float(self.index["lat_bottom_deg"].median())
        self.full_circle = self.projection == "erp" and self.fov_x_deg >= 360.0
        self.class_pixels = np.zeros(self.num_classes, dtype=np.int64)
        if self.has_labels:
            self.class_pixels = np.stack(self.index["class_pixels"].to_list()).sum(axis=0)
        self.digest = sha256_file(folder / "index.parquet")
        columns: Columns = {"image": (3, self.height, self.width)}
        if self.has_labels:
            columns["label"] = (self.height, self.width)
        self.codec: Codec = metadata.get("codec", "raw")
        self._reader = ShardReader(folder, columns=columns, shards=metadata["shards"], codec=self.codec)
        self.ids: list[str] = self.index["id"].to_list()
        # Plain lists: a pandas row lookup would cost more than reading the image.
        self._places: list[list[int]] = (
            self.index[["shard", "row", "crc32", "valid_rows"]].to_numpy().tolist()
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    @property
    def sampling(self) -> tuple[tuple[int, float], ...]:
        """(length, weight) of its one part, for the loader."""
        return ((len(self), 1.0),)

    def wraps(self, index: int) -> bool:
        """Columns of sample ``index`` wrap around; the same for all."""
        return self.full_circle

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; its tensors are copies that may be changed in place."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.folder}: no sample {index}, there are {len(self)}")
        index %= len(self)
        shard, row, crc, valid_rows = self._places[index]
        arrays = self._reader.read(shard, row, crc)
        valid = torch.ones(self.height, self.width, dtype=torch.bool)
        valid[valid_rows:] = False
        if self.has_labels:
            label = torch.from_numpy(arrays["label"])
        else:
            label = torch.full((self.height, self.width), IGNORE_INDEX, dtype=torch.uint8)
        return Sample(
            image=torch.from_numpy(arrays["image"]),
            label=label,
            valid=valid,
            id=self.ids[index],
            index=index,
        )


def labelled_split(folder: Path) -> PreparedSplit:
    """Open a split whose labels are learned from or measured against.

    Raises:
        DataError: it has no labels, or not one labelled pixel: every loss would be 0.
    """
    split = PreparedSplit(folder)
    if not split.has_labels:
        raise DataError(f"{folder}: the source has no labels; take a labelled data set and preprocess again")
    if not split.class_pixels.any():
        raise DataError(
            f"{folder}: no pixel has a label of {split.label_space}; check the raw labels and label_space"
        )
    return split


def read_index(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The index of a folder of shards, and its metadata.

    Raises:
        DataError: missing or unreadable index, one of another format version, or an empty one.
    """
    path = folder / "index.parquet"
    try:
        table = pq.read_table(path, partitioning=None)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the stage that writes {folder} first") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable index ({error}); write {folder} again") from error
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    metadata: dict[str, Any] = json.loads(raw) if raw else {}
    known = (FORMAT, CODEC_FORMAT)
    if metadata.get("format") not in known or metadata.get("codec", "raw") not in get_args(Codec):
        found = f"format {metadata.get('format')}, codec {metadata.get('codec', 'raw')}"
        raise DataError(
            f"{path}: {found}; expected format {' or '.join(map(str, known))}, codec "
            f"{' or '.join(get_args(Codec))}; write {folder} again"
        )
    if table.num_rows == 0:
        raise DataError(f"{path}: the split is empty")
    return table, metadata
