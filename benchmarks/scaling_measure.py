"""Measures what docs/scaling.md reckons with, on this machine, and writes benchmarks/scaling.json.

``python -m benchmarks.scaling_measure FOLDER_OF_PANORAMAS`` takes about five minutes on two cores.
Times are CPU seconds of one core, so that other work on the machine counts little. Nothing is extrapolated
here: ``python -m benchmarks.scaling`` does that.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling_costs import RESULT, Launches, count, scenario
from benchmarks.scaling_fan_out import Figures, cpu_seconds, database_bytes, fan_out
from panoda.config import PseudoLabelParams
from panoda.data.formats.dataset import RawItem
from panoda.data.formats.images import is_image_name
from panoda.data.loading.codec import Codec
from panoda.data.loading.index import INDEX, IndexWriter
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.prepare.prepare import prepare
from panoda.data.prepare.split import INDEX_SCHEMA
from panoda.deployment.model_table import operations
from panoda.models import create_model
from panoda.models.core.checkpoint import make_card, save_model
from panoda.stages.pseudo_labels import LabelWork, ThresholdWork, class_limits, pseudo_labels
from panoda.system import pieces
from panoda.system.context import RunContext
from panoda.system.files import staged_once, write_json
from panoda.system.machine import cores, peak_memory, processor, reset_peak_memory

HEIGHT, WIDTH = 400, 2048
SHARD = 16
"""Images per shard and piece while measuring; what a whole shard costs once is small beside its images."""
CODECS: tuple[Codec, ...] = ("raw", "webp")


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_measure", description=__doc__)
    parser.add_argument("like", type=Path, help="folder of real panoramas (JPEG)")
    parser.add_argument("--images", type=int, default=64, help="images prepared and labelled")
    parser.add_argument(
        "--pieces", type=int, default=400, help="pieces that do nothing, over Dask and Prefect"
    )
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the index that is opened")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        # Before Prefect is imported, and for the workers.
        os.environ |= {"PREFECT_HOME": str(root / "prefect"), "PYTHONPATH": str(Path(__file__).parents[1])}
        figures: dict[str, float] = {}
        for part in (
            preparing(options.like, root, options.images),
            labelling(root),
            fan_out(root, options.pieces),
            opening(root, options.rows),
            folders(root),
            hashing(root),
            tracking(root),
            predicting(),
        ):
            for name, value in part:
                figures[name] = float(f"{value:.4g}")
                print(f"{name}: {figures[name]:g}", flush=True)
    machine = f"{processor()}, {cores()} cores"
    about: dict[str, Any] = {"machine": machine, "measured": datetime.now(UTC).date().isoformat()}
    about |= {"load": round(os.getloadavg()[0], 2), "counted": count(scenario())}
    write_json(options.out, {**about, "figures": figures})


def preparing(like: Path, root: Path, images: int) -> Figures:
    """Files of street panoramas to shards of both codecs, and reading them."""
    files = sorted(path for path in like.iterdir() if is_image_name(path))
    yield "raw_bytes_per_image", statistics.mean(path.stat().st_size for path in files)
    for codec in CODECS:
        out = root / codec
        write = partial(
            prepare,
            list(_items(files, images)),
            out,
            height=HEIGHT,
            width=WIDTH,
            label_space_from=None,
            label_space_to="cs19",
            shard_images=SHARD,
            codec=codec,
            workers=1,
            progress=False,
        )
        yield f"prepare_{codec}_seconds_per_image", cpu_seconds(write) / images
        split = PreparedSplit(out / "train")
        yield f"shard_{codec}_bytes_per_image", _size(out / "train", "*.arrow") / images
        yield f"read_{codec}_seconds_per_image", cpu_seconds(partial(list, split)) / images


def labelling(root: Path) -> Figures:
    """Pseudo-labels of a small model: bytes of a label, seconds of the second pass, files left by a piece."""
    split = PreparedSplit(root / "webp/train")
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=split.num_classes)
    save_model(
        root / "model.safetensors", model, make_card(model, label_space="cs19", stage="warmup", seed=0)
    )
    state = root / "labelling"
    params = PseudoLabelParams(scales=(1.0,), flip=False, prototype_sums=True)
    pseudo_labels(
        checkpoint=root / "model.safetensors",
        target_train=split.folder,
        out=root / "labels",
        params=params,
        context=RunContext(state_dir=state, piece_images=SHARD),
    )
    yield "label_bytes_per_image", _size(root / "labels", "*.arrow") / len(split)
    yield "label_index_bytes_per_image", (root / "labels" / INDEX).stat().st_size / len(split)
    made = sorted((state / "pieces/pseudo-labels").iterdir())
    work = LabelWork.of(root / "model.safetensors", split.folder, params, split, SHARD)
    again = ThresholdWork(work, made[0].parent, class_limits(made, params, split.num_classes), SHARD)
    took = cpu_seconds(lambda: pieces.finish(again, root / "thresholds", RunContext()))
    yield "threshold_seconds_per_image", took / len(split)
    inside = [path for path in (state / "pieces").glob("*/000000/*") if path.suffix != ".arrow"]
    yield "small_files_per_piece", float(len(inside))
    sums = (state / "pieces/pseudo-labels/000000/counts.safetensors").stat().st_size
    yield "sums_bytes_per_piece_and_channel", sums / model.feature_channels


def opening(root: Path, rows: int) -> Figures:
    """An index of many rows: bytes, seconds and memory of a process that opens it."""
    folder, shards = root / "index", []
    folder.mkdir()
    first = PreparedSplit(root / "raw/train").index.iloc[0]
    row = {str(key): value for key, value in first.items()} | {"label_sha256": None, "class_pixels": None}
    for number in range(rows // 64):
        name = f"shard-{number:05d}.arrow"
        (folder / name).write_bytes(b"0")
        digest = hashlib.sha256(name.encode()).hexdigest()
        shards.append({"file": name, "rows": 64, "bytes": 1, "sha256": digest})
    with IndexWriter(folder / INDEX, INDEX_SCHEMA) as index:
        for start in range(0, rows, 1000):
            chosen = range(start, start + 1000)
            # Hashes and checksums differ from row to row, as they do: they are what does not compress.
            index.add([{**row, **_varying(n), "shard": n // 64, "row": n % 64} for n in chosen])
        index.finish(
            {
                **dict.fromkeys(("height", "width"), HEIGHT),
                "format": 1,
                "label_space": "cs19",
                "has_labels": False,
                "shards": shards,
            }
        )
    yield "index_bytes_per_image", (folder / INDEX).stat().st_size / rows
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        seconds, memory = pool.submit(_open, folder).result()
    yield "open_index_seconds_per_image", seconds / rows
    yield "open_index_bytes_per_image", memory / rows


def _varying(number: int) -> dict[str, Any]:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return {"id": f"{number:08d}", "image_sha256": digest, "crc32": int(digest[:8], 16)}


def _open(folder: Path) -> tuple[float, int]:
    """Seconds, and bytes that stay."""
    before = reset_peak_memory()
    start = time.process_time()
    split = PreparedSplit(folder)
    seconds = time.process_time() - start
    return seconds, (peak_memory() - before if len(split) else 0)


def folders(root: Path) -> Figures:
    """What a piece costs in a folder with many others: looking for remains reads the whole folder."""
    many, few, count = root / "many", root / "few", 10_000
    for folder, others in ((many, count), (few, 0)):
        folder.mkdir()
        for number in range(others):
            (folder / f"{number:06d}").mkdir()

    def make(folder: Path) -> None:
        for number in range(900_000, 900_050):
            with staged_once(folder / str(number)) as aside:
                (aside / "file").write_text("")

    slow, fast = cpu_seconds(lambda: make(many)), cpu_seconds(lambda: make(few))
    yield "scan_seconds_per_entry", (slow - fast) / 50 / count


def hashing(root: Path) -> Figures:
    """One process over a file in memory: DVC's digest of inputs, and the check of finished pieces."""
    path, size = root / "bytes", 2**29
    path.write_bytes(os.urandom(2**20) * 2**9)
    for name in ("md5", "sha256"):
        with path.open("rb") as file:
            seconds = cpu_seconds(partial(hashlib.file_digest, file, name))
        yield f"{name}_bytes_per_second", size / seconds
    path.unlink()


def tracking(root: Path) -> Figures:
    """Metrics into MLflow's SQLite store."""
    from panoda.tracking import start_run

    path, steps = root / "mlflow.db", 1000
    with start_run(
        f"sqlite:///{path}", "scaling", stage="adapt", name="adapt", params={}, tags={}, root=root
    ) as log:
        before = database_bytes(path)
        keys = [f"loss/{n}" for n in range(10)]

        def write() -> None:
            for step in range(steps):
                log.log_metrics(dict.fromkeys(keys, 1.0 / (step + 1)), step)
            log.flush()

        yield "metric_seconds", cpu_seconds(write) / steps / len(keys)
        yield "metric_bytes", (database_bytes(path) - before) / steps / len(keys)


@torch.no_grad()
def predicting() -> Figures:
    """Operations per second of Trans4PASS-T's forward pass on one core, float32."""
    model, counted = (create_model("trans4pass_t", num_classes=19).eval() for _ in range(2))
    image = torch.randn(1, 3, HEIGHT, WIDTH)
    seconds = min(cpu_seconds(lambda: model(image)) for _ in range(3))
    yield "cpu_flops", operations(counted, (HEIGHT, WIDTH)) / seconds
    # Weights and maps that stay in the cache: what is left is what Python and PyTorch do for an operator.
    small = create_model("trans4pass_nano", num_classes=19).eval()
    tiny = torch.randn(1, 3, 32, 64)
    with Launches() as launches:
        small(tiny)
    repeats = 50
    took = cpu_seconds(lambda: [small(tiny) for _ in range(repeats)])
    yield "operator_seconds", took / repeats / launches.count


def _items(files: Sequence[Path], images: int) -> Iterator[RawItem]:
    for n in range(images):
        yield RawItem(
            id=f"{n:08d}",
            split="train",
            group="",
            image=files[n % len(files)],
            label=None,
            projection="erp",
            fov_x_deg=360.0,
            lat_top_deg=35.0,
            lat_bottom_deg=-35.0,
        )


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern))


if __name__ == "__main__":
    main()
