"""Throughput of stage preprocess and of reading prepared images, for both codecs, beside plain PNG files.

Run ``python benchmarks/prepare.py --images 1000 10000 --work FOLDER``; every count prints one line per codec,
measured in a process of its own, so that the peak of its memory is its own, too (reading not included).
The raw images are synthetic (smooth shapes with fine noise) with labels, written as PNG files. Figures depend
on what images show: ``--like FOLDER`` takes the pixels of real images instead.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.data.formats.dataset import RawItem
from panoda.data.formats.images import is_image_name, read_ids, read_rgb
from panoda.data.loading.codec import Codec
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.prepare.prepare import prepare
from panoda.system.machine import cores, peak_memory

CODECS: tuple[Codec, ...] = ("raw", "webp")
VARIANTS = 16
"""Different raw images; more are the same pixels under other names, so that writing them takes no hour."""


def raw_image(index: int, height: int, width: int, like: Sequence[Path]) -> tuple[Image.Image, Image.Image]:
    """An image and its label."""
    random = np.random.default_rng(index)
    coarse = random.integers(0, 19, (max(2, height // 64), max(2, width // 64)), dtype=np.uint8)
    label = Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)
    if like:
        return read_rgb(like[index % len(like)]).resize((width, height), Image.Resampling.BICUBIC), label
    shapes = Image.fromarray(random.integers(0, 256, (*coarse.shape, 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = (4 * random.standard_normal(smooth.shape, dtype=np.float32)).astype(np.int16)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)), label


def write_raw(folder: Path, height: int, width: int, like: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The different images and labels as PNG files."""
    folder.mkdir(parents=True)

    def one(index: int) -> tuple[Path, Path]:
        image, label = raw_image(index, height, width, like)
        paths = folder / f"{index}.png", folder / f"{index}_label.png"
        image.save(paths[0], compress_level=6)
        label.save(paths[1])
        return paths

    # One after another: the peak of memory that is printed is to be that of the preparation.
    return [one(index) for index in range(VARIANTS)]


def items_of(pairs: Sequence[tuple[Path, Path]], images: int) -> Iterator[RawItem]:
    """So many items, over and over the same files."""
    return (
        RawItem(
            id=str(n),
            split="train",
            group="synthetic",
            image=pairs[n % len(pairs)][0],
            label=pairs[n % len(pairs)][1],
            projection="pinhole",
            fov_x_deg=90.0,
        )
        for n in range(images)
    )


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def read_split(folder: Path, count: int) -> float:
    """Seconds to read ``count`` samples in random order, checksums included."""
    split = PreparedSplit(folder)
    order = np.random.default_rng(0).permutation(len(split))[:count].tolist()
    return seconds(lambda: [split[i] for i in order])


def read_files(folder: Path, count: int) -> float:
    """Seconds to read ``count`` images and labels of prepared size from PNG files."""
    names = sorted(p for p in folder.glob("*.png") if not p.stem.endswith("_label"))

    def read() -> None:
        for n in range(count):
            path = names[n % len(names)]
            np.ascontiguousarray(np.asarray(read_rgb(path)).transpose(2, 0, 1))
            read_ids(path.with_name(f"{path.stem}_label.png"))

    return seconds(read)


def png_files(pairs: Sequence[tuple[Path, Path]], folder: Path, height: int, width: int) -> None:
    """What a data set without shards would read: PNG files of prepared size."""
    folder.mkdir()
    for image, label in pairs:
        read_rgb(image).resize((width, height), Image.Resampling.BILINEAR).save(folder / image.name)
        Image.open(label).resize((width, height), Image.Resampling.NEAREST).save(folder / label.name)


def size_of(folder: Path, pattern: str) -> int:
    """Bytes of the files that match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern))


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of preparing, bytes of shards, memory, speed of reading."""

    seconds: float
    stored: int
    peak_mb: float
    reads_per_second: float


def measure(
    pairs: Sequence[tuple[Path, Path]],
    images: int,
    codec: Codec,
    size: tuple[int, int],
    workers: int | None,
    reads: int,
    out: Path,
) -> Row:
    """Prepare so many images and read some of them; ``out`` is removed at the end."""
    took = seconds(
        lambda: prepare(
            items_of(pairs, images),
            out,
            height=size[0],
            width=size[1],
            label_space_from="cs19",
            label_space_to="cs19",
            shard_images=256,
            codec=codec,
            workers=workers,
            progress=True,
        )
    )
    peak = peak_memory() / 2**20
    stored = size_of(out, "*.arrow")
    speed = reads / read_split(out / "train", reads)
    shutil.rmtree(out)
    return Row(took, stored, peak, speed)


def run(arguments: argparse.Namespace, work: Path) -> None:
    """Measure and print."""
    raw_size, size = ((int(a), int(b)) for a, b in (s.split("x") for s in (arguments.raw, arguments.size)))
    like = sorted(p for p in Path(arguments.like).rglob("*") if is_image_name(p)) if arguments.like else []
    pairs = write_raw(work / "raw", *raw_size, like)
    reads = min(arguments.reads, min(arguments.images))
    workers = arguments.workers or cores()
    raw_bytes = size_of(work / "raw", "*.png") / len(pairs)
    print(
        f"raw {arguments.raw} PNG ({raw_bytes / 1e6:.2f} MB each), prepared {arguments.size}, "
        f"{workers} worker(s)\n"
    )
    print("| codec | images | images/s | raw MB/s | ms/image | kB/image | peak RSS MB | reads/s |")
    print("|---|---|---|---|---|---|---|---|")
    for images in arguments.images:
        for codec in CODECS:
            # spawn: a fork would inherit the memory of this process.
            with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
                job = pool.submit(measure, pairs, images, codec, size, arguments.workers, reads, work / "out")
                row = job.result()
            print(
                f"| {codec} | {images} | {images / row.seconds:.1f} | "
                f"{images * raw_bytes / row.seconds / 1e6:.1f} | {1e3 * row.seconds / images:.1f} | "
                f"{row.stored / images / 1e3:.0f} | {row.peak_mb:.0f} | {row.reads_per_second:.0f} |",
                flush=True,
            )
    png_files(pairs, work / "png", *size)
    kept = size_of(work / "png", "*.png") / len(pairs) / 1e3
    print(f"| PNG files | | | | | {kept:.0f} | | {reads / read_files(work / 'png', reads):.0f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000], help="numbers of images")
    parser.add_argument("--raw", default="1024x2048", help="HEIGHTxWIDTH of the raw images")
    parser.add_argument("--size", default="512x1024", help="HEIGHTxWIDTH of the prepared images")
    parser.add_argument("--workers", type=int, help="images worked on at a time (default: every core)")
    parser.add_argument("--reads", type=int, default=200, help="samples read per line")
    parser.add_argument("--like", help="folder of real images whose pixels to use")
    parser.add_argument("--work", help="folder for the files (default: the system's temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        run(arguments, Path(work))


if __name__ == "__main__":
    main()
