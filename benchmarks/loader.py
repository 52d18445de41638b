"""Samples per second with augmentation: shards through our loader beside PNG files decoded one by one.

The other side is what a data set of PNG files does: open image and label, decode, the same augmentation by
torchvision's transforms, stack. Files are in the page cache of both sides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.prepare import items_of, png_files, write_raw
from benchmarks.problem import PUBLISHED, QUICK
from benchmarks.timing import Row, Settings, interleaved
from panoda.data.formats.images import read_ids, read_rgb
from panoda.data.loading.codec import Codec
from panoda.data.loading.loader import collate, training_batches
from panoda.data.loading.prepared import PreparedSplit, Sample
from panoda.data.loading.transforms import JointTransform
from panoda.data.prepare.prepare import prepare

IMAGES, BATCH, STEPS = 32, 4, 8
AUGMENTATIONS = {
    "none": JointTransform(hflip=0.0),
    "mirror": JointTransform(hflip=0.5),
    "crop 512, mirror": JointTransform(crop_height=512, crop_width=512, hflip=0.5),
    "scale, crop 512, mirror, colour": JointTransform(
        crop_height=512, crop_width=512, scale=(0.75, 1.5), hflip=0.5, jitter=0.2, exposure=0.3
    ),
}


def rows(settings: Settings) -> Iterator[Row]:
    """One row per augmentation and codec."""
    size = QUICK.source if settings.quick else PUBLISHED.source
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pairs = write_raw(work / "raw", *size, ())
        png_files(pairs, work / "png", *size)
        for codec in ("raw", "webp"):
            split = _prepared(work / f"prepared-{codec}", pairs, size, codec)
            for name, augment in AUGMENTATIONS.items():
                yield _row(split, work / "png", codec, name, augment, settings)


def _row(
    split: PreparedSplit, png: Path, codec: str, name: str, augment: JointTransform, settings: Settings
) -> Row:
    steps = 2 if settings.quick else STEPS

    def ours() -> None:
        batches = training_batches(
            split, batch_size=BATCH, augment=augment, seed=0, start_step=0, num_steps=steps, workers=0
        )
        for batch in batches:
            assert batch["image"].shape[0] == BATCH

    def files() -> None:
        paths = sorted(path for path in png.glob("*.png") if not path.stem.endswith("_label"))
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            numbers = [(step * BATCH + i) % len(paths) for i in range(BATCH)]
            collate([augment(_read(paths[n], n), generator, full_circle=False) for n in numbers])

    count = steps * BATCH
    seconds = interleaved({"ours": ours, "png": files}, repeats=settings.repeats, device=torch.device("cpu"))
    return {
        "image": f"{split.width}x{split.height}",
        "augmentation": name,
        "codec": codec,
        "ours samples/s": count / seconds["ours"],
        "PNG samples/s": count / seconds["png"],
        "ratio": seconds["png"] / seconds["ours"],
    }


def _read(path: Path, index: int) -> Sample:
    image = np.ascontiguousarray(np.asarray(read_rgb(path)).transpose(2, 0, 1))
    label = np.array(read_ids(path.with_name(f"{path.stem}_label.png")), dtype=np.uint8)
    return Sample(
        image=torch.from_numpy(image),
        label=torch.from_numpy(label),
        valid=torch.ones(label.shape, dtype=torch.bool),
        id=path.stem,
        index=index,
    )


def _prepared(
    out: Path, pairs: list[tuple[Path, Path]], size: tuple[int, int], codec: Codec
) -> PreparedSplit:
    prepare(
        items_of(pairs, IMAGES),
        out,
        height=size[0],
        width=size[1],
        label_space_from="cs19",
        label_space_to="cs19",
        shard_images=16,
        codec=codec,
        progress=False,
    )
    return PreparedSplit(out / "train")
