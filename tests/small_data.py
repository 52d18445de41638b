"""Tiny prepared data sets, drawn here: coloured blocks whose colour gives the class away."""

from pathlib import Path

import numpy as np
from PIL import Image

from panoda.data.formats.dataset import RawItem
from panoda.data.prepare.prepare import prepare
from panoda.labels import get_label_space

HEIGHT, WIDTH = 32, 64


def blocks(
    seed: int, *, shade: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 and its label (H, W) uint8 of cs13 classes in 8 x 8 blocks."""
    random = np.random.default_rng(seed)
    grid = random.choice([0, 2, 8, 10, 12], size=(size[0] // 8, size[1] // 8))
    label = grid.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    colour = get_label_space("cs13").colourise(label).astype(int) + shade
    noise = random.integers(-20, 21, size=colour.shape)
    return np.clip(colour + noise, 0, 255).astype(np.uint8), label


def prepared(
    out: Path,
    splits: dict[str, int],
    *,
    erp: bool,
    labels: bool = True,
    shade: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Write and prepare splits of so many images; returns the folder with one subfolder per split."""
    raw, items = out / "raw", []
    raw.mkdir(parents=True)
    for number, (split, count) in enumerate(splits.items()):
        for i in range(count):
            image, label = blocks(1000 * number + i + 77 * erp, shade=shade, size=size)
            name = f"{split}-{i}"
            Image.fromarray(image).save(raw / f"{name}.png")
            Image.fromarray(label).save(raw / f"{name}-label.png")
            items.append(
                RawItem(
                    id=name,
                    split=split,
                    group="blocks",
                    image=raw / f"{name}.png",
                    label=raw / f"{name}-label.png" if labels else None,
                    projection="erp" if erp else "pinhole",
                    fov_x_deg=360.0 if erp else 90.0,
                    lat_top_deg=45.0 if erp else float("nan"),
                    lat_bottom_deg=-45.0 if erp else float("nan"),
                )
            )
    prepare(
        items,
        out / "prepared",
        height=size[0],
        width=size[1],
        label_space_from="cs13",
        label_space_to="cs13",
        shard_images=3,
        progress=False,
    )
    return out / "prepared"
