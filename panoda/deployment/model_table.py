"""Table of models: parameters, operations, latency and memory of encoder-decoder pairs.

Operations are counted by ``torch.utils.flop_counter`` on tensors without data: two per multiply-add of
convolutions, matrix products and attention, and eight per deformable sample (four multiply-adds of a
bilinear value). Norms, activations and resizing are not counted. Published GFLOPs of vision models are
mostly multiply-adds: half of these.

Time and memory are taken in a fresh process per pair. Memory is what one forward pass needs beyond the
loaded model: the peak of resident memory (reset before the pass) on a CPU, of allocations on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from panoda.models.core.registry import create_model
from panoda.models.core.segmenter import MIN_SIZE, Segmenter
from panoda.system.machine import peak_memory, processor, reset_peak_memory
from panoda.system.progress import track

Size = tuple[int, int]
Pair = tuple[str, str]

PAIRS: tuple[Pair, ...] = (
    *((f"trans4pass_{size}", decoder) for size in ("nano", "t", "s") for decoder in ("dmlp", "dmlpv2")),
    *((f"mit_b{size}", "segformer") for size in range(3)),
    ("pvt_v2_b1", "segformer"),
    ("vit:vit_tiny_patch16_224", "setr_pup"),
    ("vit:vit_tiny_patch16_224", "upernet"),
    ("vit:vit_small_patch16_224", "setr_naive"),
    ("vit:vit_base_patch16_224", "setr_naive"),
    ("vit:vit_base_patch16_224", "setr_pup"),
    ("vit:vit_base_patch16_224", "setr_mla"),
    ("vit:vit_base_patch16_224", "upernet"),
    ("timm:convnext_tiny", "upernet"),
)
REPEATS = 3
_SAMPLE_OPERATIONS = 8


class Cost(NamedTuple):
    """What one image of one size costs; None = not measured, or impossible on this machine."""

    gflop: float
    seconds: float | None = None
    megabytes: float | None = None


@dataclass(frozen=True)
class Row:
    """One pair, and what it costs at every size."""

    encoder: str
    decoder: str
    parameters: int
    costs: Sequence[Cost]
    problem: str = ""


def parse_size(text: str) -> Size:
    """``512x1024`` -> height, width; ValueError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(map(int, found.groups())) < MIN_SIZE:
        raise ValueError(
            f"size {text!r}: expected HEIGHTxWIDTH in pixels such as 512x1024, {MIN_SIZE} or more"
        )
    return int(found[1]), int(found[2])


def pairs(encoders: Sequence[str], decoders: Sequence[str]) -> list[Pair]:
    """Every encoder with every decoder; where one is left out, the pairs of the default list with the other.

    Raises:
        ValueError: no pair of the default list has what is asked for.
    """
    if encoders and decoders:
        return [(encoder, decoder) for encoder in encoders for decoder in decoders]
    chosen = [
        (encoder, decoder)
        for encoder, decoder in PAIRS
        if (not encoders or encoder in encoders) and (not decoders or decoder in decoders)
    ]
    if not chosen:
        raise ValueError(
            f"the default list has none of {', '.join([*encoders, *decoders])}; give --encoder and --decoder"
        )
    return chosen


def measure(
    chosen: Sequence[Pair],
    sizes: Sequence[Size],
    *,
    num_classes: int,
    fast: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = False,
) -> Iterator[Row]:
    """One row per pair, as it is measured.

    Raises:
        ValueError: names that do not exist or do not fit.
    """
    for encoder, decoder in track(list(chosen), "measuring models", enabled=progress):
        row = count(encoder, decoder, sizes, num_classes=num_classes)
        yield row if fast else _timed(row, sizes, num_classes=num_classes, device=device, threads=threads)


# --- counting ------------------------------------------------------------------------------------------


def count(encoder: str, decoder: str, sizes: Sequence[Size], *, num_classes: int) -> Row:
    """Parameters and operations; nothing is computed."""
    model = create_model(encoder, decoder=decoder, num_classes=num_classes, drop_path=0.0).eval()
    parameters = sum(p.numel() for p in model.parameters())
    costs = [Cost(operations(model, size) / 1e9) for size in sizes]
    return Row(encoder, decoder, parameters, costs)


def operations(model: Segmenter, size: Size) -> int:
    """Operations of one image, two per multiply-add; moves the model to ``meta``, where it has no weights."""
    model.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops())


def _formulas() -> dict[Any, Any]:
    """Operations of the custom operators, from the shapes of their arguments and results."""

    def sampled(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return _SAMPLE_OPERATIONS * math.prod(out_shape)

    return {torch.ops.panoda.deform_gather: sampled, torch.ops.panoda.deform_bag: sampled}


# --- time and memory -----------------------------------------------------------------------------------


def _timed(row: Row, sizes: Sequence[Size], *, num_classes: int, device: str, threads: int | None) -> Row:
    """The row with time and memory, measured in a process of its own."""
    costs, problem = [], ""
    # A fresh process per size, too: allocators keep what a larger image left.
    for size, cost in zip(sizes, row.costs, strict=True):
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                arguments = (row.encoder, row.decoder, num_classes, size, device, threads)
                costs.append(Cost(cost.gflop, *pool.submit(forward_cost, *arguments).result()))
        except (BrokenProcessPool, RuntimeError) as error:
            what = "out of memory" if isinstance(error, BrokenProcessPool) else str(error).split("\n")[0]
            problem = f"{size[0]}x{size[1]}: {what}"
            costs.append(cost)
    return replace(row, costs=costs, problem=problem)


def forward_cost(
    encoder: str, decoder: str, num_classes: int, size: Size, device: str, threads: int | None
) -> tuple[float, float]:
    """Median seconds of one image, and megabytes (10^6 bytes) that its forward pass needs at its peak."""
    if threads is not None:
        torch.set_num_threads(threads)
    model = create_model(encoder, decoder=decoder, num_classes=num_classes, drop_path=0.0).eval().to(device)
    image = torch.randn(1, 3, *size, device=device)
    with torch.inference_mode():
        model(image[..., : 2 * MIN_SIZE, : 2 * MIN_SIZE])  # libraries load their parts
        megabytes = _peak_megabytes(model, image)
        times = [_seconds(model, image) for _ in range(REPEATS)]
    return statistics.median(times), megabytes


def _seconds(model: Segmenter, image: torch.Tensor) -> float:
    start = time.perf_counter()
    model(image)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - start


def _peak_megabytes(model: Segmenter, image: torch.Tensor) -> float:
    """Peak of memory during a pass less what was in use before it."""
    if image.is_cuda:
        place = image.device  # not always the current one
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
        model(image)
        return (torch.cuda.max_memory_allocated(place) - before) / 1e6
    gc.collect()
    _return_free_memory()
    before = reset_peak_memory()
    model(image)
    return (peak_memory() - before) / 1e6


def _return_free_memory() -> None:
    """Let the C library give back what it holds for later, where it can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not glibc
        return


# --- showing -------------------------------------------------------------------------------------------


def as_table(rows: Sequence[Row], sizes: Sequence[Size], *, fast: bool) -> Table:
    """The table for a terminal, which is Markdown."""
    columns = ["GFLOP"] if fast else ["GFLOP", "ms", "MB"]
    table = Table("encoder", "decoder", box=box.MARKDOWN)
    for title in ("M", *(f"{column} {height}x{width}" for height, width in sizes for column in columns)):
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        cells = [row.encoder, row.decoder, f"{row.parameters / 1e6:.2f}"]
        for cost in row.costs:
            cells.append(f"{cost.gflop:.1f}")
            if not fast:
                cells.append("-" if cost.seconds is None else f"{1e3 * cost.seconds:.0f}")
                cells.append("-" if cost.megabytes is None else f"{cost.megabytes:.0f}")
        table.add_row(*cells)
    return table


def footnote(device: str, threads: int | None, *, fast: bool) -> str:
    """What the numbers mean, and what was measured on."""
    text = "M: 10^6 parameters, auxiliary heads of training included; GFLOP: 2 per multiply-add, one image."
    if fast:
        return text
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else processor()
    return (
        f"{text} ms: median of {REPEATS}; MB: peak of one forward pass beyond the model, 10^6 bytes. {name}, "
        f"{threads or torch.get_num_threads()} of {os.cpu_count()} threads, float32, PyTorch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}."
    )
