"""What every data set looks like to the rest of the project: raw items, and how they are found.

A data set is one file of this package with two functions: ``download(dataset, out, *, progress)`` brings the
raw files or a pointer to them into the empty folder ``out``, ``list_items(dataset, raw)`` yields raw items in
stable order. It has one section of parameters in ``panoda/config/datasets.py`` and one line in ``ADAPTERS``.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from panoda.config import Projection
from panoda.system.errors import DataError

Orientation = Literal["auto", "exif", "stored"]

ADAPTERS = {
    "city": "panoda.data.formats.city",
    "folder": "panoda.data.formats.folder",
    "declared": "panoda.data.formats.declared",
    "stanford2d3d": "panoda.data.formats.stanford2d3d",
    "structured3d": "panoda.data.formats.structured3d",
}
"""Data set kind in params.yaml -> module that knows its layout."""


@dataclass(frozen=True)
class Encoding:
    """What the values of a label file mean; ``panoda.data.formats.decode`` reads by it.

    Attributes:
        kind: ids = single-channel values; palette = colours.
        table: (raw value, id of the raw label space or 255) pairs; a colour is R * 65536 + G * 256 + B. A
            negative id stands for its two's complement in 8-bit and 16-bit unsigned files, too.
        others: What a value outside the table is: ignored, or an error.
        black_is_void: Where the image is black (0, 0, 0), the label is ignored.
        red_is_void: palette only: a colour with R != 0 that is not in the table is ignored.
    """

    kind: Literal["ids", "palette"]
    table: tuple[tuple[int, int], ...]
    others: Literal["ignore", "error"] = "error"
    black_is_void: bool = False
    red_is_void: bool = False


@dataclass(frozen=True)
class RawItem:
    """One raw image with or without its label.

    Attributes:
        id: Name that is unique within the split.
        group: What the image has in common with others (city, look, sequence); for reports.
        projection: Camera model of the uncropped image.
        fov_x_deg: Horizontal field of view in degrees; 360 for a full circle.
        lat_top_deg: Latitude of the uncropped upper edge in degrees; nan for pinhole.
        lat_bottom_deg: Latitude of the uncropped lower edge in degrees; nan for pinhole.
        crop_top: Share of the height cut off at the top.
        crop_bottom: Share of the height cut off at the bottom.
        ignore_bottom: Share of the cropped height, at the bottom, where nothing is learned.
        encoding: Meaning of the label's values; None = single-channel ids of the raw label space, or 255.
        orientation: Which pixels the label was drawn on (``panoda.data.formats.orientation``).
    """

    id: str
    split: str
    group: str
    image: Path
    label: Path | None
    projection: Projection
    fov_x_deg: float
    lat_top_deg: float = float("nan")
    lat_bottom_deg: float = float("nan")
    crop_top: float = 0.0
    crop_bottom: float = 0.0
    ignore_bottom: float = 0.0
    encoding: Encoding | None = None
    orientation: Orientation = "auto"


def adapter(kind: str) -> Any:
    """The module of a data set kind; ValueError lists the known ones."""
    if kind not in ADAPTERS:
        raise ValueError(f"unknown data set kind {kind!r}; known: {', '.join(ADAPTERS)}")
    return importlib.import_module(ADAPTERS[kind])


def list_items(dataset: Any, raw: Path) -> Iterator[RawItem]:
    """All raw items of a data set, one by one in stable order.

    Args:
        dataset: A data set section of params.yaml (``kind`` and ``splits`` are read here).
        raw: Folder written by stage download.

    Raises:
        DataError: no such folder, or, after the last item, a split without images.
    """
    if not raw.is_dir():
        raise DataError(f"{raw}: no such folder; run stage download first")
    found = Counter[str]()
    for item in adapter(dataset.kind).list_items(dataset, raw):
        found[item.split] += 1
        yield item
    empty = [split for split in dataset.splits if not found[split]]
    if empty:
        raise DataError(
            f"{raw}: split {', '.join(empty)} of data set {dataset.kind} has no images; "
            "check its path and splits in params.yaml and run stage download again"
        )


def raw_label_space(dataset: Any, raw: Path) -> str | None:
    """Label space of a data set's raw labels; None when it has none.

    A kind whose data sets differ has a function ``label_space(dataset, raw)``; DataError: ``raw`` cannot be read.
    """
    own = getattr(adapter(dataset.kind), "label_space", None)
    space = own(dataset, raw) if own is not None else dataset.label_space
    return None if space is None else str(space)
