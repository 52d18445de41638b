"""One prepared split: random access to decoded images and labels, through a memory map."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from panoda.config import Projection
from panoda.data.loading.codec import Codec
from panoda.data.loading.index import INDEX, read_index
from panoda.data.loading.shards import Columns, ShardReader
from panoda.geometry.erp import is_full_circle
from panoda.labels import IGNORE_INDEX, stored_space
from panoda.system.errors import DataError
from panoda.system.files import sha256_file

_PLACES = ("shard", "row", "crc32", "valid_rows")
_SUMMED = ("projection", "fov_x_deg", "lat_top_deg", "lat_bottom_deg", "class_pixels")


class Sample(TypedDict):
    """One image with its label.

    Attributes:
        image: (3, H, W) uint8 RGB.
        label: (H, W) uint8 train ids, 255 where unlabelled; all 255 when the split has no labels.
        valid: (H, W) bool, False in the ignore band.
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
        raw_label_space: Name of that of the raw labels; None where that is not known.
        remap: What became of the raw classes; None where that is not known.
        projection: 'pinhole' or 'erp'.
        fov_x_deg: Horizontal field of view in degrees; the median where images differ.
        lat_top_deg: Latitude of the upper edge in degrees; nan for pinhole; the median where images differ.
        lat_bottom_deg: Latitude of the lower edge in degrees, likewise.
        full_circle: The width covers 360 degrees, so columns wrap around.
        class_pixels: (K,) int64 labelled pixels per class.
        doubts: What was suspicious about the labels when they were prepared, a sentence each.
        digest: SHA-256 over the index, which holds the hashes of raw files and shards.

    Raises:
        DataError: missing, truncated or corrupt files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table, metadata = read_index(folder, ("id", *_PLACES, *_SUMMED))
        self.label_space: str = metadata["label_space"]
        self.space = stored_space(self.label_space, metadata.get("class_names"), metadata.get("palette"))
        self.num_classes = self.space.num_classes
        self.raw_label_space: str | None = metadata.get("raw_label_space")
        self.remap: dict[str, Any] | None = metadata.get("remap")
        self.height: int = metadata["height"]
        self.width: int = metadata["width"]
        self.has_labels: bool = metadata["has_labels"]
        self.projection = cast(Projection, table["projection"][0].as_py())
        fov, top, bottom = (float(np.median(table[name])) for name in _SUMMED[1:4])
        self.fov_x_deg, self.lat_top_deg, self.lat_bottom_deg = fov, top, bottom
        self.full_circle = is_full_circle(self.projection, self.fov_x_deg)
        self.class_pixels = np.zeros(self.num_classes, dtype=np.int64)
        if self.has_labels:
            values = pc.list_flatten(table["class_pixels"]).to_numpy()
            self.class_pixels = values.reshape(len(table), self.num_classes).sum(axis=0)
        self.doubts: list[str] = metadata.get("doubts", [])
        self.digest = sha256_file(folder / INDEX)
        self.codec: Codec = metadata.get("codec", "raw")
        self.shard_images: int = max(shard["rows"] for shard in metadata["shards"])
        shape = (self.height, self.width)
        columns: Columns = {"image": (3, *shape)} | ({"label": shape} if self.has_labels else {})
        self._reader = ShardReader(folder, columns=columns, shards=metadata["shards"], codec=self.codec)
        # Some 60 bytes per image; Python objects would take ten times as much in every loader process.
        self._ids = table["id"].combine_chunks()
        self._places = np.stack([table[name].to_numpy() for name in _PLACES], axis=1)

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per image: id, group, sizes, hashes (see ``prepare``)."""
        return read_index(self.folder)[0].to_pandas()

    @cached_property
    def ids(self) -> list[str]:
        """Item ids by position."""
        return self._ids.to_pylist()

    def ids_of(self, images: range) -> list[str]:
        """Ids of a stretch of the images."""
        return self._ids.slice(images.start, len(images)).to_pylist()

    def has_ids(self, ids: pa.ChunkedArray) -> bool:
        """Whether these are the ids of the images, in their order."""
        return bool(self._ids.equals(ids.combine_chunks()))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def sampling(self) -> tuple[tuple[int, float], ...]:
        """(length, weight) of its one part, for the loader."""
        return ((len(self), 1.0),)

    @property
    def band(self) -> tuple[float, float]:
        """Latitudes of the upper and lower edge in radians; nan for pinhole images."""
        return math.radians(self.lat_top_deg), math.radians(self.lat_bottom_deg)

    def wraps(self, index: int) -> bool:
        """Columns of sample ``index`` wrap around; the same for all."""
        return self.full_circle

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; its tensors are copies that may be changed in place."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.folder}: no sample {index}, there are {len(self)}")
        index %= len(self)
        *place, valid_rows = self._places[index].tolist()
        arrays = self._reader.read(*place)
        image = torch.from_numpy(arrays["image"])
        valid = torch.ones(image.shape[1:], dtype=torch.bool)
        valid[valid_rows:] = False
        if self.has_labels:
            label = torch.from_numpy(arrays["label"])
        else:
            label = torch.full(image.shape[1:], IGNORE_INDEX, dtype=torch.uint8)
        return Sample(image=image, label=label, valid=valid, id=self._ids[index].as_py(), index=index)


def check_same_space(one: PreparedSplit, two: PreparedSplit) -> None:
    """DataError when labels of two splits are not of the same classes in the same order."""
    if one.space.names == two.space.names and one.label_space == two.label_space:
        return
    if one.label_space != two.label_space:
        what = f"labels are {one.label_space}, those of {two.folder} are {two.label_space}"
    else:
        what = f"classes of {one.label_space} are not those of {two.folder}, prepared before it changed"
    raise DataError(f"{one.folder}: {what}; prepare both with the same label_space")


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


def open_split(folder: str | Path) -> PreparedSplit:
    """The prepared split in a folder, such as data/prepared/source/train.

    Raises:
        DataError: no such split, or one that is damaged.
    """
    return PreparedSplit(Path(folder).expanduser())
