"""Small raw and prepared data for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.data.formats.dataset import RawItem
from panoda.data.formats.images import read_label, to_ids
from panoda.data.prepare.prepare import prepare


def write_pair(
    folder: Path, name: str, *, size: tuple[int, int] = (64, 128), classes: int = 19, seed: int = 0
) -> tuple[Path, Path]:
    """A random image and label of (height, width)."""
    rng = np.random.default_rng([seed, *name.encode()])
    folder.mkdir(parents=True, exist_ok=True)
    image, label = folder / f"{name}.png", folder / f"{name}_label.png"
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    Image.fromarray(rng.integers(0, classes, size, dtype=np.uint8)).save(label)
    return image, label


def pinhole_item(image: Path, label: Path | None, split: str = "train", **more: object) -> RawItem:
    fields = {"id": image.stem, "group": "g", "projection": "pinhole", "fov_x_deg": 90.0} | more
    return RawItem(split=split, image=image, label=label, **fields)  # type: ignore[arg-type]


def erp_item(image: Path, label: Path | None, split: str = "train", **more: object) -> RawItem:
    fields = {"projection": "erp", "fov_x_deg": 360.0, "lat_top_deg": 90.0, "lat_bottom_deg": -90.0} | more
    return pinhole_item(image, label, split, **fields)


def run_prepare(items: Sequence[RawItem], out: Path, **more: object) -> dict:
    options = {
        "height": 64,
        "width": 128,
        "label_space_from": "cs19",
        "label_space_to": "cs19",
        "shard_images": 2,
        "progress": False,
    } | more
    return prepare(items, out, **options)  # type: ignore[arg-type]


def prepared_folder(tmp: Path, count: int = 5, *, erp: bool = False, labels: bool = True) -> Path:
    """``count`` prepared random images of 64 x 128; returns the split's folder."""
    make = erp_item if erp else pinhole_item
    pairs = [write_pair(tmp / "raw", f"i{n}", seed=n) for n in range(count)]
    run_prepare([make(i, label if labels else None) for i, label in pairs], tmp / "prepared")
    return tmp / "prepared" / "train"


def read_ids(path: Path) -> np.ndarray:
    """A label file as it is stored, (H, W) int32."""
    return to_ids(read_label(path)[0], path)
