"""How every benchmark measures: medians of interleaved calls, the machine and its peak, tables."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from panoda.models.core.products import linear
from panoda.system.files import staged_file
from panoda.system.machine import cores, processor


@dataclass(frozen=True)
class Settings:
    """What the command line chose.

    Attributes:
        device: cpu or cuda.
        dtype: Autocast type of our side; None = float32. The reference is always float32.
        compile: Compile our model with torch.compile.
        published: Sizes as published instead of small ones.
        repeats: Calls per median.
        quick: The smallest sizes, to see that everything runs.
        seed: Of weights, images and labels.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    compile: bool = False
    published: bool = False
    repeats: int = 5
    quick: bool = False
    seed: int = 0

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Autocast of our side."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


Row = Mapping[str, str | float | int]


def interleaved(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that a busy moment hits all alike.

    The first turn does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def synchronise(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of the best of five large matrix products."""
    side = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for product in (torch.matmul, lambda a, b: linear(a, b.T)):  # of two libraries, on a CPU in float32
        for _ in range(6):
            synchronise(device)
            start = time.perf_counter()
            product(a, b)
            synchronise(device)
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one call of a reference.

    Plain operators and torchvision's deformable one are known; ours are not, so count the reference, which
    does the same mathematics.
    """
    operators = torch.ops.torchvision
    known = {
        operators.deform_conv2d: _deform_flops,
        operators._deform_conv2d_backward: _deform_flops_back,
        torch.ops.aten.convolution_backward: _conv_flops_back,
    }
    counter = FlopCounterMode(display=False, custom_mapping=known)
    with counter:
        function()
    return int(counter.get_total_flops())


def _conv_flops_back(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **__: object
) -> int:
    """As many as forward for each gradient that is asked for; torch's own count ignores groups."""
    wanted = rest[-1]
    return 2 * math.prod(weight) * grad[0] * math.prod(grad[2:]) * (int(wanted[0]) + int(wanted[1]))


def _deform_flops(
    x: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object
) -> int:
    return 2 * math.prod(weight) * out_shape[0] * out_shape[2] * out_shape[3]


def _deform_flops_back(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *_: object, **__: object
) -> int:
    return 4 * math.prod(weight) * grad[0] * grad[2] * grad[3]


def machine(settings: Settings) -> dict[str, str | float | int]:
    """What was measured on, with load and peak."""
    device = settings.device
    found: dict[str, str | float | int] = {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision_of_ours": str(settings.dtype or torch.float32).removeprefix("torch."),
        "precision_of_reference": "float32",
        "compile": settings.compile,
        "seed": settings.seed,
        "repeats": settings.repeats,
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0,
        "peak_gflops_float32": round(peak_flops(device, torch.float32) / 1e9, 1),
    }
    if settings.dtype is not None:
        name = str(settings.dtype).removeprefix("torch.")
        found[f"peak_gflops_{name}"] = round(peak_flops(device, settings.dtype) / 1e9, 1)
    return found


class Results:
    """Rows of all benchmarks; the files are complete after every row."""

    def __init__(self, out: Path, about: Mapping[str, str | float | int], settings: Settings) -> None:
        """Write to ``out``/bench.json and bench.md; settings are kept with the machine."""
        self.out, self.about, self.settings = out, dict(about), settings
        self.tables: dict[str, list[dict[str, str | float | int]]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def extend(self, name: str, rows: Iterator[Row]) -> Iterator[Row]:
        """Keep rows of benchmark ``name`` as they come, and hand them on."""
        for row in rows:
            self.tables.setdefault(name, []).append(dict(row))
            self.write()
            yield row

    def write(self) -> None:
        """Replace both files."""
        settings = {k: str(v) for k, v in asdict(self.settings).items()}
        content = {"machine": self.about, "settings": settings, "tables": self.tables}
        with staged_file(self.out / "bench.json") as aside:
            aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        lines = [", ".join(f"{k} {v}" for k, v in self.about.items()), ""]
        for name, rows in self.tables.items():
            lines += [f"## {name}", "", *markdown(rows), ""]
        with staged_file(self.out / "bench.md") as aside:
            aside.write_text("\n".join(lines), encoding="utf-8")


def markdown(rows: Sequence[Row]) -> list[str]:
    """Lines of a table whose columns are those of the first row and what later rows add."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(shown(row.get(column, "")) for column in columns) + " |" for row in rows]


def shown(value: str | float | int) -> str:
    """A cell: three significant digits."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
