"""One look for every figure, on white paper (PNG) and on a light or dark page (SVG)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, LINE = "#1c2128", "#6a737d", "#d5dae0"
# Each must be legible on white and on near-black; told apart with the common colour deficiencies.
MODEL_COLOURS = ("#8a929b", "#e09a12", "#2f86d1", "#159a74", "#c0609f", "#d1603d")
SERIES_COLOURS = ("#2f86d1", "#e09a12", "#159a74", "#c0609f", "#d1603d", "#7b6fd0", "#8a929b")
_THEMED = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}
_RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "panoda",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the look to figures made and filled inside."""
    with matplotlib.rc_context(_RC):
        yield


def new_figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches without pyplot's global state, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(**subplots)


def legend_below(figure: Figure, axes: Axes, count: int) -> None:
    """One legend for all series of ``axes`` under the figure."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(count, len(handles), 6))


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """A colour per model, by its place in the chain."""
    return {name: MODEL_COLOURS[i % len(MODEL_COLOURS)] for i, name in enumerate(models)}


def to_svg(figure: Figure, *, name: str) -> str:
    """The figure as an inline ``<svg>`` whose text and lines take the page's colours.

    Args:
        figure: Any figure made in ``figure_style``.
        name: Prefix of all ids, so that several figures can share one page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, themed in _THEMED.items():
        text = text.replace(colour, themed)
    text = re.sub(r"font: ([^;\"]*)'DejaVu Sans'[^;\"]*", r"font: \1var(--sans)", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
