"""Statistics of a prepared data set, counted image by image while it is prepared.

Everything is counted in integers, so neither the order of the images nor a resumed run changes a digit.
Shares are shares of pixels as they lie in the image: a panorama's rows near the poles are not weighted down. The
ignore band counts nowhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from panoda.labels import IGNORE_INDEX, LabelSpace
from panoda.system.files import write_json

STATISTICS = "statistics.json"
_LEVELS = np.arange(256, dtype=np.int64)


@dataclass
class Counts:
    """What was counted in some images; sums of counts are counts.

    Attributes:
        pixels: Pixels outside the ignore band.
        values: (3,) int64, sum of the channel values 0..255 over these pixels.
        squares: (3,) int64, sum of their squares.
        labels: (256,) int64 pixels per label id; all 0 without labels.
        class_images: (256,) int64 images that show the label id.
        groups: Images per group.
    """

    images: int = 0
    pixels: int = 0
    values: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    class_images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    groups: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Add the counts of other images."""
        self.images += other.images
        self.pixels += other.pixels
        for name in _ARRAYS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.groups.update(other.groups)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {"images": self.images, "pixels": self.pixels, **arrays, "groups": dict(self.groups)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        """The inverse of ``to_json``."""
        arrays = {name: np.array(value[name], np.int64) for name in _ARRAYS}
        return cls(**{**value, **arrays, "groups": Counter(value["groups"])})


_ARRAYS = ("values", "squares", "labels", "class_images")


def count(arrays: Mapping[str, np.ndarray], row: Mapping[str, Any]) -> Counts:
    """Count one prepared image.

    Args:
        arrays: image (3, H, W) and, with a label, label (H, W), uint8.
        row: Its fields of the index: group, valid_rows.
    """
    rows = int(row["valid_rows"])
    image = arrays["image"][:, :rows]
    levels = np.stack([_histogram(channel) for channel in image])
    counts = Counts(
        images=1,
        pixels=image[0].size,
        values=levels @ _LEVELS,
        squares=levels @ _LEVELS**2,
        groups=Counter([row["group"]]),
    )
    if "label" in arrays:
        counts.labels = _histogram(arrays["label"][:rows])
        counts.class_images = (counts.labels > 0).astype(np.int64)
    return counts


def _histogram(values: np.ndarray) -> np.ndarray:
    """(256,) int64 of a (H, W) uint8 array; Pillow counts several times faster than NumPy."""
    if values.size == 0:
        return np.zeros(256, np.int64)
    return np.array(Image.fromarray(values).histogram(), np.int64)


def write_statistics(folder: Path, splits: Mapping[str, Counts], space: LabelSpace) -> dict[str, float]:
    """Write statistics.json, groups.csv and, with labels, classes.csv.

    Returns:
        The content of statistics.json, flat: ``images/<split>``, ``groups/<split>``; mean and population
        standard deviation of the channels on a scale of 0..1, ``image_mean/<split>/<r|g|b>`` and
        ``image_std/...``; of a labelled split ``class_share/<split>/<class>`` (of the labelled pixels) and
        ``unlabelled/<split>``.
    """
    metrics: dict[str, float] = {f"images/{name}": float(c.images) for name, c in splits.items()}
    for name, counts in splits.items():
        metrics |= _metrics(name, counts, space)
    write_json(folder / STATISTICS, metrics)
    groups = [(name, g, n) for name, c in splits.items() for g, n in sorted(c.groups.items())]
    _write_csv(folder / "groups.csv", groups, "split group images")
    classes = [line for name, c in splits.items() for line in _class_lines(name, c, space)]
    _write_csv(folder / "classes.csv", classes, "split class pixels share images")
    return metrics


def _metrics(name: str, counts: Counts, space: LabelSpace) -> dict[str, float]:
    metrics = {f"groups/{name}": float(len(counts.groups))}
    if counts.pixels:
        mean = counts.values / counts.pixels
        std = np.sqrt(np.maximum(counts.squares / counts.pixels - mean**2, 0.0))
        for channel, m, s in zip("rgb", mean / 255, std / 255, strict=True):
            metrics |= {f"image_mean/{name}/{channel}": float(m), f"image_std/{name}/{channel}": float(s)}
    total = int(counts.labels.sum())
    if total:
        metrics[f"unlabelled/{name}"] = float(counts.labels[IGNORE_INDEX] / total)
        lines = _class_lines(name, counts, space)
        metrics |= {f"class_share/{name}/{label}": share for _, label, _, share, _ in lines}
    return metrics


def _class_lines(name: str, counts: Counts, space: LabelSpace) -> list[tuple[str, str, int, float, int]]:
    pixels = counts.labels[: space.num_classes]
    if not pixels.any():
        return []
    shares, images = pixels / pixels.sum(), counts.class_images.tolist()
    return [(name, c, int(pixels[k]), float(shares[k]), images[k]) for k, c in enumerate(space.names)]


def _write_csv(path: Path, lines: list[Any], columns: str) -> None:
    if lines:
        pd.DataFrame(lines, columns=columns.split()).to_csv(path, index=False, float_format="%.6g")
