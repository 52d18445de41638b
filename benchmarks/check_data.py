"""How fast `panoda data check` is: N pairs of the size of Cityscapes in a temporary folder.

    python -m benchmarks.check_data --pairs 60

The images are smooth shapes with sensor noise, so that their PNGs are about as large, and as slow to decode,
as photographs (2 to 2.5 MB); the labels are regions of Cityscapes ids. Pairs are made before the clock
starts; they lie in the page cache then, so that the figure is that of the processor, not of the disk.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.data.check.check import check_survey
from panoda.data.check.survey import Survey
from panoda.data.formats.dataset import RawItem
from panoda.data.formats.declaration import read_declaration
from panoda.data.formats.encoding import encoding_of
from panoda.labels import get_label_space

HEIGHT, WIDTH = 1024, 2048
LABELS = read_declaration("cityscapes").labels
assert LABELS is not None


def write_pair(folder: Path, number: int) -> RawItem:
    """Write one random pair; the same number gives the same files."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, size=(9, 17, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    noise = random.normal(0, 1.0, size=(HEIGHT, WIDTH, 3))
    pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    ids = random.integers(0, 34, size=(HEIGHT // 64, WIDTH // 64), dtype=np.uint8)
    image, label = folder / f"{number:05d}_leftImg8bit.png", folder / f"{number:05d}_gtFine_labelIds.png"
    Image.fromarray(pixels).save(image, compress_level=1)
    Image.fromarray(ids.repeat(64, axis=0).repeat(64, axis=1)).save(label)
    return RawItem(
        id=image.stem,
        split="train",
        group="random",
        image=image,
        label=label,
        projection="pinhole",
        fov_x_deg=49.0,
        encoding=encoding_of(LABELS, "cityscapes"),
    )


def cpu_seconds() -> float:
    """Processor time of this process and its threads in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Make pairs, check them, print pairs a second and what the 2,975 of Cityscapes would take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--workers", type=int, default=None, help="default: one per core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor() as pool:
            items = list(pool.map(write_pair, [folder] * options.pairs, range(options.pairs)))
        size = sum(item.image.stat().st_size for item in items)
        start, before = time.perf_counter(), cpu_seconds()
        survey = Survey(
            "pairs",
            items=items,
            classes=get_label_space("cs19").names,
            sizes={"train": (HEIGHT, WIDTH)},
        )
        report = check_survey(survey, workers=options.workers)
        seconds, busy = time.perf_counter() - start, cpu_seconds() - before
    if report.problems:
        raise SystemExit(f"the pairs are wrong: {report.problems[:3]}")
    rate = options.pairs / seconds
    print(
        f"{options.pairs} pairs of {WIDTH} x {HEIGHT}, {size / options.pairs / 1e6:.2f} MB an image: "
        f"{seconds:.1f} s, {rate:.1f} pairs/s, {size / seconds / 1e6:.0f} MB/s, "
        f"processor {1000 * busy / options.pairs:.0f} ms a pair; "
        f"2,975 pairs take {2975 / rate / 60:.1f} min"
    )


if __name__ == "__main__":
    main()
