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
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from pydantic import BaseModel
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


class Cost(BaseModel):
    """What one image of one size costs; None = not measured, or impossible on this machine."""

    height: int
    width: int
    gflop: float
    seconds: float | None = None
    megabytes: float | None = None


class Row(BaseModel):
    """One pair."""

    encoder: str
    decoder: str
    parameters: int
    auxiliary: int
    """Of these, parameters of auxiliary heads, which only training uses."""
    costs: list[Cost]
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
        yield row if fast else _timed(row, num_classes=num_classes, device=device, threads=threads)


# --- counting ------------------------------------------------------------------------------------------


def count(encoder: str, decoder: str, sizes: Sequence[Size], *, num_classes: int) -> Row:
    """Parameters and operations; nothing is computed."""
    model = create_model(encoder, decoder=decoder, num_classes=num_classes, drop_path=0.0).eval()
    auxiliary = getattr(model.decoder, "heads", None)
    extra = 0 if auxiliary is None else sum(p.numel() for p in auxiliary.parameters())
    return Row(
        encoder=encoder,
        decoder=decoder,
        parameters=sum(p.numel() for p in model.parameters()),
        auxiliary=extra,
        costs=[Cost(height=h, width=w, gflop=operations(model, (h, w)) / 1e9) for h, w in sizes],
    )


def operations(model: Segmenter, size: Size) -> int:
    """Operations of one image, two per multiply-add; moves the model to ``meta``, where it has no weights."""
    model.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops())


def _formulas() -> dict[Any, Any]:
    """Operations of the custom operators, from the shapes of their arguments and results."""

    def sampled(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
        total = _SAMPLE_OPERATIONS
        for side in out_shape:
            total *= side
        return total

    return {torch.ops.panoda.deform_gather: sampled, torch.ops.panoda.deform_bag: sampled}


# --- time and memory -----------------------------------------------------------------------------------


def _timed(row: Row, *, num_classes: int, device: str, threads: int | None) -> Row:
    """The row with time and memory, measured in a process of its own."""
    costs = []
    problem = ""
    # A fresh process per size, too: allocators keep what a larger image left.
    for cost in row.costs:
        arguments = (row.encoder, row.decoder, num_classes, (cost.height, cost.width), device, threads)
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                seconds, megabytes = pool.submit(forward_cost, *arguments).result()
            costs.append(cost.model_copy(update={"seconds": seconds, "megabytes": megabytes}))
        except (BrokenProcessPool, RuntimeError) as error:
            what = "out of memory" if isinstance(error, BrokenProcessPool) else str(error).split("\n")[0]
            problem = f"{cost.height}x{cost.width}: {what}"
            costs.append(cost)
    return row.model_copy(update={"costs": costs, "problem": problem})


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


def machine(device: str, threads: int | None) -> dict[str, Any]:
    """What was measured on."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else processor()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": name,
        "threads": threads or torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": None if load is None else round(load, 1),
        "dtype": "float32",
        "torch": torch.__version__,
    }


def footnote(about: dict[str, Any], *, fast: bool) -> str:
    """What the numbers mean."""
    text = "M: 10^6 parameters, auxiliary heads of training included; GFLOP: 2 per multiply-add, one image."
    if fast:
        return text
    return (
        f"{text} ms: median of {REPEATS}; MB: peak of one forward pass beyond the model, 10^6 bytes. "
        f"{about['device']}, {about['threads']} of {about['cores']} threads, {about['dtype']}, "
        f"PyTorch {about['torch']}, load {about['load']}."
    )


def _titles(sizes: Sequence[Size], *, fast: bool) -> list[str]:
    columns = ["GFLOP"] if fast else ["GFLOP", "ms", "MB"]
    return ["encoder", "decoder", "M", *(f"{c} {h}x{w}" for h, w in sizes for c in columns)]


def _cells(row: Row, *, fast: bool) -> list[str]:
    cells = [row.encoder, row.decoder, f"{row.parameters / 1e6:.2f}"]
    for cost in row.costs:
        cells.append(f"{cost.gflop:.1f}")
        if not fast:
            cells.append("-" if cost.seconds is None else f"{1e3 * cost.seconds:.0f}")
            cells.append("-" if cost.megabytes is None else f"{cost.megabytes:.0f}")
    return cells


def as_rich(rows: Sequence[Row], sizes: Sequence[Size], *, fast: bool) -> Table:
    """The table for a terminal."""
    table = Table()
    for number, title in enumerate(_titles(sizes, fast=fast)):
        table.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, fast=fast))
    return table


def as_markdown(rows: Sequence[Row], sizes: Sequence[Size], *, fast: bool) -> str:
    """The table as Markdown, with what could not be measured below it."""
    titles = _titles(sizes, fast=fast)
    lines = [f"| {' | '.join(titles)} |", "|---|---|" + "---:|" * (len(titles) - 2)]
    lines += [f"| {' | '.join(_cells(row, fast=fast))} |" for row in rows]
    lines += [f"\n{row.encoder} with {row.decoder}: {row.problem}" for row in rows if row.problem]
    return "\n".join(lines) + "\n"
