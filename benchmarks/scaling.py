"""What Cityscapes to DensePASS and ten million panoramas cost: the arithmetic of docs/scaling.md.

``python -m benchmarks.scaling`` prints its tables; ``--write`` puts them into the document. They follow from
scaling.json (measured by ``benchmarks.scaling_measure``; the model's operations, counted by ``--count``),
scaling.yaml (assumed) and scenarios/cs2dp.yaml (the published schedule). GPU times are estimates: operations
over a stated share of the peak, or operators times what the CPU takes to launch one, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.scaling_costs import CHANNELS, HERE, HOUR, RESULT, Cost, Inputs, count, scenario, tasks
from benchmarks.timing import Row, markdown
from panoda.system.files import staged_file, write_json

DOCUMENT = HERE.parent / "docs/scaling.md"
DAY = 24 * HOUR
TERA, GIGA, MEGA = 1e12, 1e9, 1e6


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
    rows = inputs.params.adapt.iterations / inputs.params.runtime.log_every * a["losses"]
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
        write_json(RESULT, {**found, "counted": count(scenario())})
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
