"""Tables of results, in percent and percentage points, ready to print or to set in HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

FREQUENT = 8
"""How many of the most frequent classes the second mean is taken over."""


def model_label(name: str) -> str:
    """Name shown for a model of the chain.

    Example:
        >>> model_label("source_only"), model_label("round2")
        ('Source only', 'Adapted, round 2')
    """
    known = {"source_only": "Source only", "warmup": "Warm-up"}
    if name.startswith("round") and name[5:].isdigit():
        return f"Adapted, round {name[5:]}"
    return known.get(name, name.replace("_", " ").capitalize())


def stage_label(name: str) -> str:
    """Name shown for a training stage, as in ``adapt, round 2`` -> Adaptation, round 2."""
    stage, comma, rest = name.partition(",")
    known = {"pretrain": "Source training", "warmup": "Warm-up", "adapt": "Adaptation"}
    known |= {"ssl_pretrain": "Without labels", "ssl": "Without labels"}
    return known.get(stage, stage) + comma + rest


def set_label(name: str) -> str:
    """Name shown for an evaluation set, as in ``target_test`` -> target test."""
    return name.replace("_", " ")


def frequent_classes(per_class: pd.DataFrame, count: int = FREQUENT) -> list[str]:
    """The classes with most labelled pixels, most frequent first; per_class.csv rows of one set."""
    pixels = per_class.groupby("class", sort=False)["label_pixels"].max()
    return list(pixels[pixels > 0].sort_values(ascending=False, kind="stable").index[:count])


def result_table(
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]],
    per_class: pd.DataFrame,
    *,
    models: Sequence[str],
    sets: Sequence[str] = ("source_val", "target_test"),
) -> pd.DataFrame:
    """One row per model: scores on each labelled set and their gaps to the first model.

    Args:
        per_class: evaluate/per_class.csv.
        sets: Sets to show; those without mIoU are left out.

    Returns:
        Index = model; for each set columns ``<set>/miou``, ``/frequent`` (mean over the eight most
        frequent classes), ``/shared`` (where some classes have no source labels), ``/accuracy``,
        ``/solid_angle`` (panoramas), each with ``.../gap``. Percent and percentage points.
    """
    columns: dict[str, list[float]] = {}
    for name in sets:
        if not any("miou" in metrics.get(m, {}).get(name, {}) for m in models):
            continue
        frequent = frequent_classes(per_class[per_class["set"] == name])
        for model in models:
            scores = metrics.get(model, {}).get(name, {})
            row = {
                "miou": scores.get("miou"),
                "frequent": _mean([scores.get("iou", {}).get(c) for c in frequent]),
                "shared": scores.get("miou_shared"),
                "accuracy": scores.get("pixel_accuracy"),
                "solid_angle": scores.get("miou_solid_angle"),
            }
            for key, value in row.items():
                columns.setdefault(f"{name}/{key}", []).append(math.nan if value is None else 100.0 * value)
    table = pd.DataFrame(columns, index=pd.Index(list(models), name="model")).dropna(axis=1, how="all")
    gaps = {f"{column}/gap": table[column] - table[column].iloc[0] for column in table.columns}
    return table.assign(**gaps)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def per_class_table(per_class: pd.DataFrame, *, models: Sequence[str]) -> pd.DataFrame:
    """IoU per class and model, most frequent class first.

    Returns:
        Index = class; ``share`` of labelled pixels, one column per model and ``gap`` (last - first), percent.
    """
    pixels = per_class.drop_duplicates("class").set_index("class")["label_pixels"]
    share = pd.DataFrame({"share": 100.0 * pixels / max(1, int(pixels.sum()))})
    return _with_models(share, per_class, "iou", models).sort_values("share", ascending=False, kind="stable")


def _with_models(table: pd.DataFrame, rows: pd.DataFrame, value: str, models: Sequence[str]) -> pd.DataFrame:
    """A table with a column of percent for every model, and ``gap`` (last - first)."""
    for model in models:
        table[model] = 100.0 * rows[rows["model"] == model].set_index(table.index.name)[value]
    table["gap"] = table[models[-1]] - table[models[0]]
    return table


def group_table(by_group: pd.DataFrame, *, models: Sequence[str]) -> pd.DataFrame:
    """Scores (mIoU) per group of images and model.

    Returns:
        Index = group; ``images``, one column per model and ``gap`` (last - first), percent.
    """
    by_group = by_group.assign(group=by_group["group"].astype(str))
    images = by_group.drop_duplicates("group").set_index("group")[["images"]]
    return _with_models(images, by_group, "miou", models)


def prediction_table(per_class: pd.DataFrame, *, models: Sequence[str]) -> pd.DataFrame:
    """Share of pixels predicted as each class, for a set without labels.

    Returns:
        Index = class; one column per model and ``gap`` (last - first), percent.
    """
    pixels = per_class.pivot_table(index="class", columns="model", values="predicted_pixels", sort=False)
    table = 100.0 * pixels[list(models)] / pixels[list(models)].sum().clip(lower=1)
    table["gap"] = table[models[-1]] - table[models[0]]
    return table.sort_values(models[-1], ascending=False, kind="stable")


def recipe_table(params: Mapping[str, Any]) -> pd.DataFrame:
    """What each training stage ran: steps, batch, optimiser and the parts switched on."""
    rows = []
    for stage in ("ssl", "pretrain", "warmup", "adapt"):
        section = params.get(stage) or {}
        optim = section.get("optim") or {}
        if not section or section.get("method") == "none":
            continue
        rows.append(
            {
                "stage": stage,
                "steps": section.get("iterations"),
                "batch": section.get("batch_size"),
                "optimiser": f"{optim.get('name', 'adamw')}, {optim.get('lr', float('nan')):g}",
                "parts": ", ".join(_parts(stage, section)) or "none",
            }
        )
    return pd.DataFrame(rows)


def _parts(stage: str, section: Mapping[str, Any]) -> list[str]:
    """The optional parts of a stage that are switched on, with their strength."""
    if section.get("iterations") == 0:
        return ["not run: passes the model through"]
    kind = (section.get("class_weights") or {}).get("kind", "none")
    parts = [] if kind == "none" else [f"class weights ({kind.replace('_', ' ')})"]
    if stage == "ssl":
        shares = ", ".join(f"{role} {weight:g}" for role, weight in section.get("images", {}).items())
        parts += [str(section.get("method")), f"images of {shares}"]
    if stage == "pretrain" and section.get("ohem"):
        parts.append("hard example mining")
    if section.get("adversarial_weight"):
        parts.append(f"adversarial {section['adversarial_weight']:g}")
    if stage == "adapt":
        parts.append(str(section.get("method", "")).replace("_", " "))
        if (section.get("mpa") or {}).get("weight"):
            parts.append(f"prototype loss {section['mpa']['weight']:g}")
    for key, label in (
        ("ema_momentum", "EMA teacher"),
        ("class_mix", "class-mix"),
        ("colour_transfer", "colour transfer"),
        ("class_colour_transfer", "class-wise colour transfer"),
        ("erp_warp", "sphere warp"),
    ):
        if section.get(key):
            parts.append(f"{label} {section[key]:g}")
    if (section.get("augment_target") or {}).get("yaw_roll"):
        parts.append("yaw rolls")
    return parts


def number(value: float, digits: int = 1) -> str:
    """Fixed decimals; a dash for nan."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def signed(value: float) -> str:
    """One decimal with a sign (a true minus); a dash for nan.

    Example:
        >>> signed(-1.25), signed(3.0), signed(0.01)
        ('−1.2', '+3.0', '±0.0')
    """
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.1f}"
    sign = "±" if float(text) == 0 else "+" if value > 0 else "−"
    return sign + text
