"""``reports/index.html``: one self-contained page, offline, light and dark, on a phone and in print.

Figures are inline SVG that take the page's colours, pictures are data URIs; nothing is fetched from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from panoda.deployment.viewer import indexed_uri, jpeg_uri, json_in_page, viewer_text
from panoda.report import figures, tables, words
from panoda.report.collect import Picture, Results
from panoda.report.style import model_colours, to_svg

MAX_WIDTH = 1440
"""Pictures wider than this many pixels are scaled down."""
PICTURE_BUDGET = 10_000_000
"""Bytes of encoded pictures after which further ones are left out."""
CONFIDENCE_STEP = 5
"""Confidences are rounded to so many 255ths, and of half the size: they are looked at, not computed with."""
OPEN_PICTURES = 3
"""Pictures shown at once; the others fold away."""

_SCORES = {
    "miou": "mIoU",
    "frequent": f"{tables.FREQUENT} frequent",
    "shared": "shared classes",
    "accuracy": "accuracy",
    "solid_angle": "by solid angle",
}
_SOURCE_SCORES = ("miou", "shared")


def render(results: Results, *, params: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The whole page as text.

    Args:
        results: What the stages left (``panoda.report.collect.collect``).
        params: The parameters of the run, shown as YAML; sentences are made from them where they have
            scenario, seed, data, model, pretrain, warmup and adapt.
        provenance: Any nested mapping; ``git_commit`` and ``git_dirty`` also enter the instructions, and
            mappings with ``started`` are runs of stages and share one table.
    """
    environment = Environment(
        loader=PackageLoader("panoda.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": tables.number, "signed": tables.signed}
    labels = {f.__name__: f for f in (tables.model_label, tables.set_label, tables.stage_label)}
    environment.globals |= labels
    table = tables.result_table(
        results.metrics, results.per_class, models=results.models, sets=results.shown_sets
    )
    origin = {k: v for k, v in provenance.items() if not _is_run(v)}
    origin["data digest (SHA-256 of the index)"] = {n: one.get("digest") for n, one in results.sets.items()}
    origin["checkpoint SHA-256"] = results.checkpoints
    return environment.get_template("report.html.j2").render(
        scenario=params.get("scenario", "report"),
        title=words.title(results),
        task=words.task_sentence(params, results),
        headline=words.headline(results, table),
        caution=words.caution(params, results, table),
        selection=words.selection_sentences(params, results),
        target_note="" if results.labelled("target_test") else words.target_note(results),
        sets=results.sets,
        models=results.models,
        colours=model_colours(results.models),
        scores=_score_table(table, results.shown_sets),
        shared_note=words.shared_note(results),
        remaps=words.remap_rows(results),
        groups=[
            {"set": name, "table": tables.group_table(rows, models=results.models)}
            for name in results.shown_sets
            if not (rows := results.by_group[results.by_group["set"] == name]).empty
        ],
        recipe=tables.recipe_table(params).to_dict("records"),
        pictures=_pictures(results),
        legend=_legend(results),
        viewer=_viewer(results) if any(about.get("sphere") for about in results.sets.values()) else None,
        per_class=list(_per_class(results)),
        predictions=_predictions(results),
        directions=_directions(results),
        rounds=list(_rounds(results)),
        idle="round1" in results.copies,
        curves=list(_curves(results)),
        reconstruction=_sheet(results.reconstruction),
        confusion=list(_confusion(results)),
        params_yaml=yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True, width=100),
        provenance=list(_flatten(origin)),
        runs=[{"stage": k, **v} for k, v in provenance.items() if _is_run(v)],
        commit=str(provenance.get("git_commit") or ""),
        dirty=bool(provenance.get("git_dirty")),
    )


def _score_table(table: pd.DataFrame, sets: Sequence[str]) -> dict[str, Any]:
    """Header groups and rows of the result table."""
    groups: list[dict[str, Any]] = []
    for name in sets:
        wanted = _SCORES if name == "target_test" else _SOURCE_SCORES
        keys = [k for k in wanted if f"{name}/{k}" in table.columns]
        if keys:
            groups.append({"set": name, "columns": [{"key": k, "title": _SCORES[k]} for k in keys]})
    rows = []
    for model, values in table.iterrows():
        cells = [
            {
                "value": values[f"{g['set']}/{c['key']}"],
                "gap": values[f"{g['set']}/{c['key']}/gap"],
                "main": c["key"] == "miou",
            }
            for g in groups
            for c in g["columns"]
        ]
        rows.append({"model": str(model), "cells": cells})
    return {"groups": groups, "rows": rows}


def _figure(figure: Figure | None, name: str, alt: str) -> dict[str, Any] | None:
    if figure is None:
        return None
    # The SVG comes from matplotlib, which escapes every text it draws.
    return {"svg": Markup(to_svg(figure, name=name)), "alt": alt}


def _labels(results: Results) -> dict[str, str]:
    return {m: tables.model_label(m) for m in results.models}


def _per_class(results: Results) -> Iterator[dict[str, Any]]:
    palette = dict(zip(results.space.names, results.space.palette, strict=True))
    for name in results.shown_sets:
        if not results.labelled(name):
            continue
        rows = results.per_class[results.per_class["set"] == name]
        title = tables.set_label(name)
        yield {
            "set": name,
            "note": words.absent_note(results, name),
            "table": tables.per_class_table(rows, models=results.models),
            "figure": _figure(
                figures.per_class_figure(rows, models=_labels(results), colours=palette),
                f"classes-{name}",
                f"Bars of IoU per class on {title}, one bar per model; the numbers are in the table below.",
            ),
        }


def _predictions(results: Results) -> dict[str, Any] | None:
    """Prediction statistics of a target without labels."""
    if results.labelled("target_test") or not results.sets.get("target_test", {}).get("images"):
        return None
    rows = results.per_class[results.per_class["set"] == "target_test"]
    confidence = {m: 100 * results.metrics[m]["target_test"]["mean_confidence"] for m in results.models}
    return {"table": tables.prediction_table(rows, models=results.models), "confidence": confidence}


def _directions(results: Results) -> list[dict[str, Any]]:
    found = []
    for rows, draw, name, alt in (
        (results.by_latitude, figures.latitude_figure, "latitude", "mIoU by latitude band on target test"),
        (results.by_azimuth, figures.azimuth_figure, "azimuth", "mIoU by viewing direction on target test"),
    ):
        rows = rows[rows["set"] == "target_test"]
        if not rows.empty:
            place = "lat_deg" if name == "latitude" else "azimuth_deg"
            table = rows.pivot_table(index=place, columns="model", values="miou", dropna=False, sort=False)
            alt = f"{alt}, one line per model; the numbers are in the table."
            figure = _figure(draw(rows, models=_labels(results)), name, alt)
            found.append({"name": name, "figure": figure, "table": 100 * table[results.models]})
    return found


def _rounds(results: Results) -> Iterator[dict[str, Any]]:
    for one in results.rounds if "round1" not in results.copies else ():
        entry: dict[str, Any] = {"number": one.number, "pseudo_labels": None, "prototypes": None}
        if (table := one.pseudo_labels) is not None:
            alt = f"Share of pixels kept and confidence threshold per class, round {one.number}."
            drawn = _figure(figures.pseudo_label_figure(table), f"pseudo-{one.number}", alt)
            entry["pseudo_labels"] = {"note": words.pseudo_label_note(table), "figure": drawn, "table": table}
        if (table := one.prototypes) is not None:
            alt = f"Cosine similarity of source and target prototypes per class, round {one.number}."
            drawn = _figure(figures.prototype_figure(table), f"prototypes-{one.number}", alt)
            entry["prototypes"] = {"note": words.prototype_note(table), "figure": drawn, "table": table}
        if one.pseudo_labels is not None or one.prototypes is not None:
            yield entry


def _curves(results: Results) -> Iterator[dict[str, Any]]:
    for number, (stage, history) in enumerate(results.histories.items()):
        drawn = _figure(
            figures.curves_figure(history), f"curves-{number}", f"Loss and learning rate of {stage}."
        )
        if drawn is not None:
            yield {"stage": stage, **drawn}


def _confusion(results: Results) -> Iterator[dict[str, Any]]:
    for name in results.shown_sets:
        for model in dict.fromkeys((results.models[0], results.models[-1])):
            counts = results.confusion.get((model, name))
            if counts is not None:
                title = f"{tables.model_label(model)}, {tables.set_label(name)}"
                alt = f"Confusion matrix, {title}, each row normalised to 100 %."
                drawn = _figure(figures.confusion_figure(counts), f"confusion-{model}-{name}", alt)
                yield {"title": title, "set": name, **(drawn or {})}


def _pictures(results: Results) -> dict[str, Any]:
    """Encoded pictures, target first, up to the budget."""
    entries: list[dict[str, Any]] = []
    spent = left_out = 0
    for picture in results.pictures:
        whats = [w for w in ("input", "truth", *results.models) if w in picture.files]
        titles = {w: tables.model_label(w) for w in whats} | {"input": "Input", "truth": "Truth"}
        place = _place(results.sets[picture.set_name].get("sphere"))
        tiles = [_tile(picture, w, viewed=place is not None) | {"what": w, "title": titles[w]} for w in whats]
        size = sum(len(tile["uri"]) + len(tile["confidence"]) for tile in tiles)
        if spent + size > PICTURE_BUDGET:
            left_out += 1
            continue
        spent += size
        entries.append({"set": picture.set_name, "number": picture.number, "tiles": tiles, "sphere": place})
    target = [e for e in entries if e["set"] == "target_test"]
    shown = (target or entries)[:OPEN_PICTURES]
    return {"shown": shown, "folded": [e for e in entries if e not in shown], "left_out": left_out}


def _place(sphere: Mapping[str, float] | None) -> dict[str, float] | None:
    """Where a picture lies on the sphere, as the viewer calls it; None for pinhole images."""
    if sphere is None:
        return None
    return {
        "fov": sphere["fov_x_deg"],
        "latTop": sphere["lat_top_deg"],
        "latBottom": sphere["lat_bottom_deg"],
    }


def _tile(picture: Picture, what: str, *, viewed: bool) -> dict[str, Any]:
    """Data URI and (width, height) of a photograph or label map, and its confidence.

    Args:
        viewed: It can be opened in the viewer, which alone shows confidences; elsewhere they are "".
    """
    with Image.open(picture.files[what]) as image:
        size = _fitted(image)
        if what == "input":
            return {"uri": _photograph(image), "size": size, "confidence": ""}
        palette = np.asarray(image.getpalette(), dtype=np.uint8)
        uri = indexed_uri(np.asarray(image.resize(size, Image.Resampling.NEAREST)), palette)
    confidence, path = "", picture.files.get(f"{what}_confidence")
    if viewed and path is not None:
        with Image.open(path) as image:
            half = (max(1, size[0] // 2), max(1, size[1] // 2))
            values = np.asarray(image.resize(half, Image.Resampling.BOX))
        confidence = indexed_uri(values // CONFIDENCE_STEP * CONFIDENCE_STEP)
    return {"uri": uri, "size": size, "confidence": confidence}


def _sheet(path: Path | None) -> dict[str, Any] | None:
    """Data URI and size of the reconstructions, where there are any."""
    if path is None:
        return None
    with Image.open(path) as image:
        return {"uri": _photograph(image), "size": _fitted(image)}


def _fitted(image: Image.Image) -> tuple[int, int]:
    """(width, height) in the page."""
    width = min(MAX_WIDTH, image.width)
    return width, round(image.height * width / image.width)


def _photograph(image: Image.Image) -> str:
    return jpeg_uri(image.convert("RGB").resize(_fitted(image), Image.Resampling.LANCZOS), 88)


def _viewer(results: Results) -> Markup:
    """The page to look around in and its classes, as JSON for report.js, which fills and opens it."""
    space = results.space
    classes = [{"name": n, "colour": c} for n, c in zip(space.names, space.palette, strict=True)]
    return Markup(json_in_page({"page": viewer_text(), "classes": classes}))


def _legend(results: Results) -> list[dict[str, str]]:
    """Colours of the classes that are predicted or labelled anywhere, most frequent first."""
    pixels = (
        results.per_class.groupby("class", sort=False)[["label_pixels", "predicted_pixels"]].max().max(axis=1)
    )
    order = pixels[pixels > 0].sort_values(ascending=False, kind="stable").index
    palette = dict(zip(results.space.names, results.space.palette, strict=True))
    return [{"name": n, "colour": "rgb({} {} {})".format(*palette[n])} for n in order if n in palette]


def _is_run(value: Any) -> bool:
    return isinstance(value, Mapping) and "started" in value


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{name} · ")
        elif item is not None:
            yield name, str(item)
