"""Figures of results: confusion, classes, curves, directions, pseudo-labels, prototypes.

Every function takes tables as the stages write them and returns a matplotlib ``Figure``; fractions are
shown in percent. Nothing here touches pyplot, so no figure outlives its use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from panoda.report.style import (
    INK,
    LINE,
    MUTED,
    SERIES_COLOURS,
    figure_style,
    legend_below,
    model_colours,
    new_figure,
)

_HEAT = LinearSegmentedColormap.from_list("panoda", ["#f3f6f9", "#9cc7ea", "#2f86d1", "#0b3d6b"])


def confusion_figure(counts: pd.DataFrame, *, title: str = "") -> Figure:
    """Row-normalised confusion matrix.

    Args:
        counts: (K, K) pixel counts, index = label, columns = prediction, class names on both.
    """
    values = counts.to_numpy(dtype=np.float64)
    rows = values.sum(axis=1, keepdims=True)
    share = np.where(rows > 0, values / np.maximum(rows, 1), np.nan)
    size = 1.9 + 0.31 * len(counts)
    with figure_style():
        figure, axes = new_figure(size + 0.3, size)
        axes.pcolormesh(
            np.ma.masked_invalid(share), cmap=_HEAT, vmin=0, vmax=1, edgecolors="white", linewidth=0.4
        )
        for i, j in zip(*np.nonzero(np.nan_to_num(share) >= 0.015), strict=True):
            colour = "white" if share[i, j] > 0.45 else "#17202a"
            text = f"{100 * share[i, j]:.0f}"
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=6.5, color=colour)
        ticks = np.arange(len(counts)) + 0.5
        axes.set_xticks(
            ticks, list(counts.columns), rotation=55, ha="right", rotation_mode="anchor", color=INK
        )
        axes.set_yticks(ticks, list(counts.index))
        axes.tick_params(length=0)
        axes.set(xlabel="prediction", ylabel="label (rows add up to 100 %)", title=title, aspect="equal")
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
    return figure


def per_class_figure(
    per_class: pd.DataFrame, *, models: Mapping[str, str], colours: Mapping[str, tuple[int, int, int]]
) -> Figure:
    """IoU bars per class, most frequent class first.

    Args:
        per_class: Rows of per_class.csv for one set.
        colours: Class -> RGB of the label palette, shown as a small square.
    """
    frequency = per_class.groupby("class", sort=False)["label_pixels"].max()
    classes = list(frequency[frequency > 0].sort_values(ascending=False, kind="stable").index)
    iou = per_class.pivot_table(index="class", columns="model", values="iou", sort=False, dropna=False)
    height = 0.8 / max(1, len(models))
    with figure_style():
        figure, axes = new_figure(8.2, 0.9 + len(classes) * (0.13 + 0.075 * len(models)))
        for i, (model, label) in enumerate(models.items()):
            places = np.arange(len(classes)) - 0.4 + (i + 0.5) * height
            values = 100 * iou[model].reindex(classes).fillna(0.0).to_numpy()
            axes.barh(places, values, height * 0.88, color=model_colours(list(models))[model], label=label)
        for place, name in enumerate(classes):
            colour = tuple(c / 255 for c in colours.get(name, (128, 128, 128)))
            axes.plot(
                -0.012, place, "s", ms=7, color=colour, clip_on=False, transform=axes.get_yaxis_transform()
            )
        _class_rows(axes, classes, pad=12)
        axes.set(xlim=(0, 100), xlabel="IoU in %")
        legend_below(figure, axes, len(models))
    return figure


def _class_rows(axes: Axes, classes: Sequence[str], *, pad: float | None = None) -> None:
    """One row per class, the first on top, under horizontal bars at 0, 1, ..."""
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(axis="y", length=0, **({} if pad is None else {"pad": pad}))
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def curves_figure(history: pd.DataFrame) -> Figure | None:
    """Losses, learning rate and source validation of one stage; None when there is nothing to draw."""
    losses = _with_values(history, [c for c in history.columns if c.startswith("loss/")])
    panels = {
        "loss": [c for c in losses if c != "loss/discriminator"],
        "learning rate": _with_values(history, ["lr"]),
        "source val mIoU in %": _with_values(history, ["miou/source_val"]),
    }
    panels = {name: columns for name, columns in panels.items() if columns}
    if not panels:
        return None
    with figure_style():
        figure, grid = new_figure(9.2, 2.75, nrows=1, ncols=len(panels), squeeze=False)
        for axes, (name, columns) in zip(grid[0], panels.items(), strict=True):
            _curve_panel(axes, history, columns, name)
            if len(columns) > 1:
                legend_below(figure, axes, 6)  # inside, it would hide parts of the curves
    return figure


def _with_values(history: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    return [c for c in columns if c in history.columns and history[c].notna().any()]


def _curve_panel(axes: Axes, history: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    factor = 100.0 if name.endswith("%") else 1.0
    for i, column in enumerate(columns):
        points = history[["step", column]].dropna()
        marker = "o" if len(points) < 12 else None
        label = column.removeprefix("loss/").replace("_", " ")
        colour = SERIES_COLOURS[i % len(SERIES_COLOURS)]
        # The sum often lies on its largest part: a pale band that both show through.
        band: dict[str, Any] = {"lw": 5, "alpha": 0.35, "zorder": 1} if label == "total" else {}
        values = factor * points[column]
        axes.plot(points["step"], values, marker=marker, ms=3, color=colour, label=label, **band)
    positive = history[list(columns)].stack()
    if name == "loss" and (positive > 0).all() and positive.max() > 100 * max(positive.min(), 1e-12):
        axes.set_yscale("log")
    axes.set(xlabel="step")
    axes.set_title(name, fontweight="normal", fontsize=9, color=MUTED)
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.grid(axis="y")


def latitude_figure(by_latitude: pd.DataFrame, *, models: Mapping[str, str]) -> Figure:
    """Show mIoU over latitude (drawn upwards as in the image), one stepped line per model."""
    with figure_style():
        figure, axes = new_figure(4.6, 4.2)
        for model, colour in model_colours(list(models)).items():
            rows = by_latitude[by_latitude["model"] == model].sort_values("lat_deg")
            edges = np.append(rows["lat_bottom_deg"].to_numpy(), rows["lat_top_deg"].max())
            look: dict[str, Any] = {"color": colour, "lw": 2, "label": models[model], "baseline": None}
            axes.stairs(100 * rows["miou"].to_numpy(), edges, orientation="horizontal", **look)
        axes.set(xlabel="mIoU in %", ylabel="latitude in degrees", xlim=(0, None))
        axes.set_yticks(sorted({*by_latitude["lat_bottom_deg"], *by_latitude["lat_top_deg"]}))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}°".replace("-", "−"))
        axes.grid(axis="x")
        legend_below(figure, axes, 2)
    return figure


def azimuth_figure(by_azimuth: pd.DataFrame, *, models: Mapping[str, str]) -> Figure:
    """Show mIoU over viewing direction, forward at the top and right on the right."""
    with figure_style():
        figure, axes = new_figure(4.6, 4.2, subplot_kw={"projection": "polar"})
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        for model, colour in model_colours(list(models)).items():
            rows = by_azimuth[by_azimuth["model"] == model].sort_values("azimuth_deg")
            angle = np.deg2rad(np.append(rows["azimuth_deg"], rows["azimuth_deg"].iloc[0]))
            values = 100 * np.append(rows["miou"], rows["miou"].iloc[0])
            axes.plot(angle, values, color=colour, marker="o", ms=3.5, label=models[model])
        axes.set_xticks(np.deg2rad(np.arange(0, 360, 45)))
        axes.set_xticklabels(["forward", "", "right", "", "back", "", "left", ""], color=INK)
        axes.tick_params(axis="y", labelcolor=MUTED, labelsize=7.5)
        axes.set_ylim(0, _ceiling(100 * by_azimuth["miou"].max()))
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.set_rlabel_position(22.5)
        axes.set_xlabel("mIoU in %", color=MUTED)
        axes.grid(color=LINE)
        axes.spines["polar"].set_color(LINE)
        legend_below(figure, axes, 2)
    return figure


def _ceiling(percent: float) -> float:
    return 100.0 if not math.isfinite(percent) else max(10.0, 10.0 * math.ceil(percent / 10.0))


def pseudo_label_figure(classes: pd.DataFrame) -> Figure:
    """Kept share and confidence threshold per class, from pseudo_labels/classes.csv."""
    present = classes[classes["predicted_pixels"] > 0].sort_values(
        "predicted_pixels", ascending=False, kind="stable"
    )
    places = np.arange(len(present))
    with figure_style():
        figure, axes = new_figure(8.2, 0.9 + 0.2 * max(1, len(present)))
        axes.barh(
            places, 100 * present["kept_share"], 0.62, color=SERIES_COLOURS[0], label="kept share of pixels"
        )
        axes.plot(100 * present["threshold"], places, "|", ms=9, mew=2.2, color="#e09a12", label="threshold")
        _class_rows(axes, list(present["class"]))
        axes.set(xlim=(0, 100), xlabel="% of pixels kept, confidence in %")
        legend_below(figure, axes, 2)
    return figure


def prototype_figure(classes: pd.DataFrame) -> Figure | None:
    """Cosine similarity of source and target prototypes per class; None when no class has both."""
    both = classes.dropna(subset=["cosine"]).sort_values("cosine", ascending=False, kind="stable")
    if both.empty:
        return None
    places = np.arange(len(both))
    with figure_style():
        figure, axes = new_figure(8.2, 0.7 + 0.2 * len(both))
        axes.barh(places, both["cosine"], 0.62, color=SERIES_COLOURS[2])
        for place, value in zip(places, both["cosine"], strict=True):
            axes.text(max(value, 0) + 0.01, place, f"{value:.3f}", va="center", fontsize=7.5, color=MUTED)
        _class_rows(axes, list(both["class"]))
        axes.set_xlabel("cosine similarity, source to target prototype")
        axes.set_xlim(min(0.0, float(both["cosine"].min()) - 0.05), 1.09)
    return figure
