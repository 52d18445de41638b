"""``panoda bench``: the engine beside plain references, side by side in one run.

Sides take turns call by call, after a warm-up; figures are medians. Results are written after every row to
``bench.json`` and ``bench.md``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.timing import Results, Settings, machine, markdown

BENCHMARKS = {
    "deform": "benchmarks.deform",
    "layers": "benchmarks.layers",
    "mpa-step": "benchmarks.mpa_step",
    "mae": "benchmarks.mae",
    "pseudo-labels": "benchmarks.pseudo_labels",
    "loader": "benchmarks.loader",
    "growth": "benchmarks.growth",
    "predict": "benchmarks.predict",
    "flows": "benchmarks.whole_flows",
}
"""Name -> module with ``rows(settings)``."""


def run(names: Sequence[str], settings: Settings, out: Path, *, show: Callable[[str], object]) -> Path:
    """Run benchmarks one after the other.

    Args:
        names: Keys of ``BENCHMARKS``; none = all.
        settings: Device, precision, sizes.
        out: Folder for bench.json and bench.md.
        show: Takes every line as it comes.

    Returns:
        Path of the Markdown table.

    Raises:
        ValueError: an unknown name.
    """
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    results = Results(out, machine(settings), settings)
    show(", ".join(f"{k} {v}" for k, v in results.about.items()))
    for name in names or BENCHMARKS:
        show(f"\n## {name}\n")
        head: list[str] = []
        for row in results.extend(name, importlib.import_module(BENCHMARKS[name]).rows(settings)):
            *lines, last = markdown([row])
            if lines != head:
                show("\n".join(lines))
                head = lines
            show(last)
    return out / "bench.md"
