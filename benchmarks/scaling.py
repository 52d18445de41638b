"""What Cityscapes to DensePASS and ten million panoramas cost: the arithmetic of docs/scaling.md.

``python -m benchmarks.scaling`` prints its tables; ``--write`` puts them into the document. They follow from
scaling.json (measured by ``benchmarks.scaling_measure``; the model's operations, counted anew by ``--count``),
scaling.yaml (assumed) and scenarios/cs2dp.yaml (the published schedule). GPU times are estimates: operations
over a stated share of the peak, or operators times what the CPU takes to launch one, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import markdown
from panoda.config import Params, load_params
from panoda.files import staged_file, write_json
from panoda.inference import _margin, _scaled
from panoda.model_table import operations
from panoda.models import create_model
from panoda.models.discriminator import Discriminator

HERE = Path(__file__).parent
RESULT = HERE / "scaling.json"
DOCUMENT = HERE.parent / "docs/scaling.md"
SCENARIO = HERE.parent / "scenarios/cs2dp.yaml"
CELL = 4
"""Views of an image are whole cells of this many pixels."""
SOURCE_IMAGES, SOURCE_VAL, TARGET_IMAGES, TARGET_TEST = 2975, 500, 2000, 100
"""Cityscapes train and val; WildPASS2K, DensePASS."""
MODELS = 3
"""Evaluated: source-only, warmed up, adapted."""
CLASSES = 19
CHANNELS = 128
"""Of Trans4PASS-T's features."""
BACKWARD = 3
"""A training step computes and launches about three times what its forward pass does."""
HOUR, DAY = 3600.0, 86400.0
TERA, GIGA, MEGA = 1e12, 1e9, 1e6
Row = Mapping[str, str | float | int]
Size = tuple[int, int]


@dataclass(frozen=True)
class Inputs:
    """Everything the tables follow from.

    Attributes:
        measured: Figures of scaling.json.
        counted: Height and width -> operations and launches of one image's forward pass, of scaling.json.
        assumed: scaling.yaml.
        params: The scenario.
    """

    measured: Mapping[str, float]
    counted: Mapping[str, Sequence[float]]
    assumed: Mapping[str, Any]
    params: Params

    @classmethod
    def load(cls) -> Inputs:
        """Read the files of this folder."""
        found = json.loads(RESULT.read_text(encoding="utf-8"))
        assumed = yaml.safe_load((HERE / "scaling.yaml").read_text(encoding="utf-8"))
        return cls(found["figures"], found["counted"], assumed, load_params(SCENARIO))

    @property
    def gpu_flops(self) -> float:
        """Operations per second of one GPU, as assumed."""
        return float(self.assumed["gpu_flops"] * self.assumed["utilisation"])

    @property
    def launch_seconds(self) -> float:
        """Of the CPU, for an operator."""
        return self.measured["operator_seconds"] + float(self.assumed["launch_seconds"])

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return int(self.assumed["nodes"] * self.assumed["gpus_per_node"])

    @property
    def cores(self) -> int:
        """Cores of the cluster."""
        return int(self.assumed["nodes"] * self.assumed["cores_per_node"])


@dataclass(frozen=True)
class Cost:
    """Operations and kernel launches."""

    flops: float
    launches: float

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(self.flops + other.flops, self.launches + other.launches)

    def images(self, count: float) -> Cost:
        """So many images at once: no more launches."""
        return Cost(self.flops * count, self.launches)

    def times(self, count: float) -> Cost:
        """One after the other."""
        return Cost(self.flops * count, self.launches * count)

    def seconds(self, inputs: Inputs) -> float:
        """On one GPU."""
        return max(self.flops / inputs.gpu_flops, self.launches * inputs.launch_seconds)


# --- counting ----------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts operators that compute; views are free."""

    def __init__(self) -> None:
        """None yet."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one."""
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not views
        return func(*args, **(kwargs or {}))


def count(params: Params) -> dict[str, tuple[int, int]]:
    """Operations and launches of one image's forward pass, for every size of the schedule."""
    model = create_model(
        params.model.encoder, decoder=params.model.decoder, num_classes=CLASSES, drop_path=0.0
    ).eval()
    source, target = (_size(params, role) for role in ("source", "target"))
    augment = params.pretrain.augment
    sizes = {(augment.crop_height, augment.crop_width), source, target}
    for scales in (params.pseudo_labels.scales, params.prototypes.scales, params.evaluate.scales):
        sizes |= {*views(source, scales, wrap=False), *views(target, scales, wrap=True)}
    found = {}
    for size in sorted(sizes):
        flops = operations(model, size)  # leaves the model without data
        with torch.no_grad(), Launches() as launches:
            model(torch.empty(1, 3, *size, device="meta"))
        found[_key(size)] = (flops, launches.count)
    return found


def _key(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def discriminator(classes: int, size: Size) -> Cost:
    """One map through the discriminator."""
    model = Discriminator(classes).to("meta")
    height, width = size
    flops = 0
    for layer in model:
        if isinstance(layer, torch.nn.Conv2d):
            height, width = height // 2, width // 2
            flops += 2 * layer.weight.numel() * height * width
    return Cost(flops, len(model))


def views(size: Size, scales: Sequence[float], *, wrap: bool) -> list[Size]:
    """Sizes that the model sees of one image, margins of the circle included."""
    found = []
    for scale in scales:
        height, width = (_scaled(side, scale, CELL) for side in size)
        found.append((height, width + (2 * _margin(width, CELL) if wrap else 0)))
    return found


@dataclass(frozen=True)
class Task:
    """A stage: units of work and what one costs.

    Attributes:
        name: Stage.
        units: Steps, or images.
        cost: Of one unit on ``batch`` images, forward and, in training, backward.
        batch: Images of a step that GPUs can share (per domain); 0 = units go to any number of GPUs.
        forward_gflop: Of one unit's forward pass.
    """

    name: str
    units: int
    cost: Cost
    batch: int = 0

    def gpus(self, available: int) -> int:
        """As many as divide the batch, like ``runtime.devices: auto``."""
        if not self.batch:
            return available
        return max(n for n in range(1, available + 1) if self.batch % n == 0)

    def hours(self, available: int, inputs: Inputs) -> float:
        """Estimate. Processes that train share a step's operations; each launches all its kernels."""
        count = self.gpus(available)
        if not self.batch:
            return self.units * self.cost.seconds(inputs) / count / HOUR
        return self.units * Cost(self.cost.flops / count, self.cost.launches).seconds(inputs) / HOUR


def tasks(inputs: Inputs) -> list[Task]:
    """The stages of the published schedule that compute."""
    params = inputs.params

    def model(size: Size) -> Cost:
        return Cost(*inputs.counted[_key(size)])

    def passes(size: Size, scales: Sequence[float], *, wrap: bool) -> Cost:
        return sum((model(view) for view in views(size, scales, wrap=wrap)), Cost(0, 0))

    source, target = (_size(params, role) for role in ("source", "target"))
    crop = (params.pretrain.augment.crop_height, params.pretrain.augment.crop_width)
    # Once for the adversarial loss and once for each domain's update.
    adversary = discriminator(CLASSES, target).times(2) + discriminator(CLASSES, source)
    both = model(source) + model(target) + adversary
    pretrain, warmup, adapt = params.pretrain, params.warmup, params.adapt
    labels = passes(target, params.pseudo_labels.scales, wrap=True).times(1 + params.pseudo_labels.flip)
    sums = passes(source, params.prototypes.scales, wrap=False)
    scores = (
        passes(source, params.evaluate.scales, wrap=False).times(SOURCE_VAL)
        + passes(target, params.evaluate.scales, wrap=True).times(TARGET_TEST)
    ).times(1 / (SOURCE_VAL + TARGET_TEST))
    return [
        _training("pretrain", pretrain.iterations, model(crop), pretrain.batch_size),
        _training("warmup", warmup.iterations, both, warmup.batch_size),
        Task("pseudo_labels", TARGET_IMAGES, labels),
        Task("prototypes", SOURCE_IMAGES, sums),
        _training("adapt", adapt.iterations, both, adapt.batch_size),
        Task("evaluate", MODELS * (SOURCE_VAL + TARGET_TEST), scores),
    ]


def _training(name: str, steps: int, image: Cost, batch: int) -> Task:
    return Task(name, steps, image.images(batch).times(BACKWARD), batch)


def _size(params: Params, role: str) -> Size:
    prepare = params.data.domains[role].prepare
    return prepare.height, prepare.width


# --- the published run -------------------------------------------------------------------------------


def published(inputs: Inputs) -> Iterator[Row]:
    """Cityscapes to DensePASS on one and on eight GPUs."""
    totals = [0.0, 0.0, 0.0]
    for task in tasks(inputs):
        one, eight = (task.hours(count, inputs) for count in (1, 8))
        flops = task.units * task.cost.flops
        totals = [a + b for a, b in zip(totals, (flops, one, eight), strict=True)]
        computing, launching = task.cost.flops / inputs.gpu_flops, task.cost.launches * inputs.launch_seconds
        yield {
            "stage": task.name,
            "units": f"{task.units:,} {'steps' if task.batch else 'images'}",
            "TFLOP a unit": task.cost.flops / TERA,
            "ms computing": 1e3 * computing,
            "ms launching": 1e3 * launching,
            "PFLOP": flops / 1e15,
            "h on 1 GPU": one,
            "GPUs of 8": task.gpus(8),
            "h on 8": eight,
        }
    yield {"stage": "all", "PFLOP": totals[0] / 1e15, "h on 1 GPU": totals[1], "h on 8": totals[2]}


def on_a_core(inputs: Inputs) -> float:
    """Days of one core of the machine that was measured, at the rate of its forward pass."""
    flops = sum(task.units * task.cost.flops for task in tasks(inputs))
    return flops / inputs.measured["cpu_flops"] / DAY


# --- ten million -------------------------------------------------------------------------------------


def stored(inputs: Inputs) -> Iterator[Row]:
    """Bytes of ten million panoramas, one line per kind of file."""
    m, images = inputs.measured, inputs.assumed["images"]
    lines = (
        ("raw files (JPEG, at most 2048 wide)", m["raw_bytes_per_image"]),
        ("prepared shards, codec raw", m["shard_raw_bytes_per_image"]),
        ("prepared shards, codec webp", m["shard_webp_bytes_per_image"]),
        ("pseudo-label shards (label, confidence)", m["label_bytes_per_image"]),
        ("the same before the thresholds, until the stage ends", m["label_bytes_per_image"]),
        ("index of prepared images", m["index_bytes_per_image"]),
        ("index of pseudo-labels", m["label_index_bytes_per_image"]),
    )
    for what, size in lines:
        yield {"what": what, "kB an image": size / 1e3, "TB": size * images / TERA}


@dataclass(frozen=True)
class Pass:
    """A pass over all images on the cluster."""

    name: str
    seconds: float
    read: float
    written: float


def passes(inputs: Inputs) -> list[Pass]:
    """What reads all images: seconds on the cluster, bytes read and written per image."""
    m, a = inputs.measured, inputs.assumed
    labels = next(task for task in tasks(inputs) if task.name == "pseudo_labels")
    prepared, label = m["shard_webp_bytes_per_image"], m["label_bytes_per_image"]
    cores = m["prepare_webp_seconds_per_image"] / inputs.cores
    batch = a["label_batch"]
    estimate = labels.cost.images(batch).seconds(inputs) / batch / inputs.gpus
    second = m["threshold_seconds_per_image"] / inputs.gpus
    adapt = next(task for task in tasks(inputs) if task.name == "adapt")
    # Ten million steps would be far apart: one epoch, every GPU with images of its own, no exchange counted.
    image = Cost(adapt.cost.flops / adapt.batch, 0.0).seconds(inputs) / inputs.gpus
    count = a["images"]
    return [
        Pass("preprocess (all cores)", count * cores, m["raw_bytes_per_image"], prepared),
        Pass("pseudo_labels, predicting (all GPUs)", count * estimate, prepared, label),
        Pass("pseudo_labels, thresholds (one core per GPU)", count * second, label, label),
        Pass("one epoch of adapt (all GPUs, large batch)", count * image, prepared + label, 0.0),
    ]


def cluster(inputs: Inputs) -> Iterator[Row]:
    """The passes: hours, bytes moved, and what of the file system's bandwidth they ask for."""
    a = inputs.assumed
    for one in passes(inputs):
        rate = a["images"] / one.seconds
        floor = a["images"] * max(one.read / a["storage_read_bytes"], one.written / a["storage_write_bytes"])
        yield {
            "pass": one.name,
            "h computing": one.seconds / HOUR,
            "images/s": rate,
            "TB read": a["images"] * one.read / TERA,
            "TB written": a["images"] * one.written / TERA,
            "GB/s asked": rate * (one.read + one.written) / GIGA,
            "h of storage": floor / HOUR,
        }


def breaking(inputs: Inputs) -> Iterator[Row]:
    """What one process, one folder or one database has to bear, for each size of pieces."""
    columns = [list(_burdens(inputs, size)) for size in inputs.assumed["piece_images"]]
    for same in zip(*columns, strict=True):
        row: dict[str, str | float | int] = {"what": same[0][0], "unit": same[0][1]}
        for size, (_, _, value) in zip(inputs.assumed["piece_images"], same, strict=True):
            row[f"pieces of {size}"] = value
        yield row


def _burdens(inputs: Inputs, size: int) -> Iterator[tuple[str, str, float]]:
    m, a, images = inputs.measured, inputs.assumed, inputs.assumed["images"]
    pieces = math.ceil(images / size)
    prepared, label = m["shard_webp_bytes_per_image"], m["label_bytes_per_image"]
    yield "pieces of one pass = Dask tasks = Prefect task runs", "", float(pieces)
    # Shards of three passes (prepared, before and after thresholds), and the small files of two.
    files = 3 * pieces + pieces * m["small_files_per_piece"]
    yield "files of preprocess and pseudo_labels", "million", files / MEGA
    for what, who in (
        ("submitting these tasks, one process with Dask's scheduler", "driver"),
        ("recording them, one Prefect server", "server"),
        ("starting them, over all workers", "worker"),
    ):
        yield what, "h", pieces * m[f"task_{who}_seconds"] / HOUR
    yield "Prefect's database, three passes", "GB", 3 * pieces * m["task_database_bytes"] / GIGA
    scans = pieces * pieces / 2 * m["scan_seconds_per_entry"]
    yield "looking for remains in the folder of pieces, per pass, over all workers", "h", scans / HOUR
    looks = 3 * pieces * a["storage_operation_seconds"]
    yield "seeing and linking pieces over the network, per pass, one process", "h", looks / HOUR
    sums = pieces * m["sums_bytes_per_piece_and_channel"] * CHANNELS
    yield "sums for prototypes, read by one process", "GB", sums / GIGA
    hashes = images * prepared / m["sha256_bytes_per_second"]
    yield "SHA-256 of prepared shards when they are taken over, one core", "h", hashes / HOUR
    again = images * 2 * label / _hashing(inputs, "sha256")
    yield "SHA-256 of finished label pieces when a killed stage goes on, one machine", "h", again / HOUR
    digest = images * (prepared + label) / _hashing(inputs, "md5")
    yield "MD5 of images and labels as inputs of one stage, one machine", "h", digest / HOUR
    # Checked, made a recipe of, and made one of again when the shard is there.
    looked = 3 * images * a["storage_operation_seconds"]
    yield "looking at every raw file three times, one process", "h", looked / HOUR
    yield "index of prepared images", "GB", images * m["index_bytes_per_image"] / GIGA
    yield "opening it, every process", "s", images * m["open_index_seconds_per_image"]
    yield "memory of it, every process", "GB", images * m["open_index_bytes_per_image"] / GIGA
    adapt = inputs.params.adapt
    rows = adapt.iterations / adapt.log_every * a["losses"]
    yield "MLflow metrics of one adaptation", "rows", rows
    yield "MLflow metrics of one adaptation", "MB", rows * m["metric_bytes"] / MEGA


def _hashing(inputs: Inputs, name: str) -> float:
    """Bytes per second of one machine with all its cores, as far as the file system gives them."""
    threads = min(32, inputs.assumed["cores_per_node"])  # as many as a pool of Python's threads has
    return float(
        min(inputs.measured[f"{name}_bytes_per_second"] * threads, inputs.assumed["storage_read_bytes"])
    )


# --- the document ------------------------------------------------------------------------------------

TABLES = {"published": published, "stored": stored, "cluster": cluster, "breaking": breaking}


def render(inputs: Inputs) -> dict[str, str]:
    """Name -> Markdown."""
    tables = {name: "\n".join(markdown(list(table(inputs)))) for name, table in TABLES.items()}
    core = f"On one core of the measured machine the same operations take about {on_a_core(inputs):.0f} days."
    return {**tables, "core": core}


def filled(document: str, tables: Mapping[str, str]) -> str:
    """The document with its tables replaced, each between two comments with its name.

    Raises:
        ValueError: a table has no place in the document.
    """
    for name, table in tables.items():
        first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if document.count(first) != 1 or document.count(last) != 1:
            raise ValueError(f"table {name} has no place: expected one {first} and one {last}")
        before, _, rest = document.partition(first)
        _, _, after = rest.partition(last)
        document = f"{before}{first}\n{table}\n{last}{after}"
    return document


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or put them into the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the tables of docs/scaling.md")
    parser.add_argument("--count", action="store_true", help="count the model's operations anew")
    options = parser.parse_args(argv)
    if options.count:
        found = json.loads(RESULT.read_text(encoding="utf-8"))
        write_json(RESULT, {**found, "counted": count(load_params(SCENARIO))})
    tables = render(Inputs.load())
    if options.write:
        text = filled(DOCUMENT.read_text(encoding="utf-8"), tables)
        with staged_file(DOCUMENT) as aside:
            aside.write_text(text, encoding="utf-8")
        return
    for name, table in tables.items():
        print(f"\n## {name}\n\n{table}")


if __name__ == "__main__":
    main()
