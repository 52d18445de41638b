"""Stage evaluate: every model on source val and target test, as tables for DVC and pictures for the report.

The only stage that reads target labels. A target without labels gets pictures and prediction
statistics instead of scores, and ``sets.json`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from panoda.config import EvaluateParams
from panoda.evaluation.evaluate import Evaluation
from panoda.evaluation.pieces import EvaluateWork, SetPaths, load_models
from panoda.evaluation.sets import SETS, EvaluationSet
from panoda.inference.metrics import ConfusionMatrix, iou
from panoda.system.context import RunContext
from panoda.system.files import staged_directory, write_json
from panoda.system.pieces import finish, work_folder

FREQUENT = 8
"""How many of the most frequent classes the second mean is taken over."""
SCORES = ("miou", "pixel_accuracy", "pixels")
TABLES = {
    "per_class.csv": ("model", "set", "class", "iou", "label_pixels", "predicted_pixels"),
    "by_latitude.csv": ("model", "set", "lat_deg", "lat_bottom_deg", "lat_top_deg", *SCORES),
    "by_azimuth.csv": ("model", "set", "azimuth_deg", "left_deg", "right_deg", *SCORES),
    "by_group.csv": ("model", "set", "group", "images", *SCORES),
}


def evaluate(
    *,
    models: Mapping[str, Path],
    source_val: Path,
    target_test: Path | None,
    out: Path,
    params: EvaluateParams,
    context: RunContext,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Evaluate every model and write ``out``.

    Args:
        models: Name (source_only, warmup, round1, ...) -> model.safetensors, in training order, or
            the result folder of stage rounds for all its rounds; metrics without a model prefix are those of
            the last one.
        target_test: Prepared split, with or without labels; None when there is none.
        more_sources: Folder of further prepared sources; their val splits are sets of their own, ROLE_val.

    Returns:
        ``<model>/miou/<set>``, ``<model>/iou/<set>/<class>`` and so on; without prefix for the last model.

    Raises:
        ValueError: a model with another number of classes, or sets that do not fit together.
    """
    test, more = (None if path is None else path.absolute() for path in (target_test, more_sources))
    inputs = SetPaths(source_val.absolute(), test, more, sources)
    sets = inputs.open(params.pictures)
    models = _every_round(models)
    loaded = load_models(models, space=sets[0].space)
    flat: dict[str, float] = {}
    # So that a table of evaluations says of what each one is.
    context.logger.log_params(loaded[list(models)[-1]].params)
    with work_folder(context, out) as place, staged_directory(out) as folder:
        work = EvaluateWork(
            {name: (model.path, model.digest) for name, model in loaded.items() if model.same_as is None},
            inputs,
            tuple((current.name, current.split.digest, len(current.split)) for current in sets),
            params,
            context.piece_size,
        )
        pieces = finish(work, place, context)
        writer = _Writer(folder, context)
        writer.inputs(sets)
        for step, (name, model) in enumerate(loaded.items()):
            writer.models[name] = {"same_weights_as": model.same_as}
            measured = model.same_as or name
            results = {current.name: work.joined(measured, current, pieces) for current in sets}
            own: dict[str, float] = {}
            for current in sets:
                own |= writer.result(name, current, results[current.name])
            flat |= {f"{name}/{key}": value for key, value in own.items()}
            flat |= own
            # Speed is logged but never written: the same inputs must give the same files.
            speed = sum(r.images for r in results.values()) / work.seconds(measured, pieces)
            logged = own if model.same_as else own | {"images_per_second": speed}
            context.logger.log_metrics(logged | {f"{name}/{k}": v for k, v in own.items()}, step)
        writer.close(sets, last=len(models) - 1)
    return flat


def _every_round(models: Mapping[str, Path]) -> dict[str, Path]:
    """A folder of rounds replaced by the model of each round in it."""
    found: dict[str, Path] = {}
    for name, path in models.items():
        if path.is_dir():
            rounds = sorted(path.glob("round*"), key=lambda folder: int(folder.name.removeprefix("round")))
            found |= {folder.name: folder / "adapt" / "model.safetensors" for folder in rounds}
        else:
            found[name] = path
    return found


class _Writer:
    """Collects rows and pictures of all models and writes them into the result folder."""

    def __init__(self, folder: Path, context: RunContext):
        self.folder = folder
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        self.logger = context.logger
        self.models: dict[str, dict[str, str | None]] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
        self.montages: dict[tuple[str, int], list[np.ndarray]] = {}

    def inputs(self, sets: list[EvaluationSet]) -> None:
        """Write the fixed images and, where known, their labels."""
        for current in sets:
            for number, index in enumerate(current.pictures):
                sample = current.split[index]
                image = np.ascontiguousarray(np.asarray(sample["image"]).transpose(1, 2, 0))
                self.montages[current.name, number] = [image]
                Image.fromarray(image).save(self._picture(current, number, "input"))
                if current.labelled:
                    self._label(current, number, "truth", np.asarray(sample["label"]))

    def result(self, model: str, current: EvaluationSet, result: Evaluation) -> dict[str, float]:
        """Write what belongs to one model and set; returns the flat metrics without the model's name."""
        for number, index in enumerate(current.pictures):
            self._label(current, number, model, result.predictions[index].numpy())
            confidence = Image.fromarray(result.confidences[index].numpy())
            confidence.save(self._picture(current, number, f"{model}_confidence"))
        nested = _nested_metrics(current, result)
        self.metrics.setdefault(model, {})[current.name] = nested
        counts, ious = result.confusion.matrix.cpu(), result.confusion.iou()
        for k, name in enumerate(current.space.names):
            score = float(ious[k]) if current.labelled else np.nan
            pixels = (int(counts[k].sum()), int(result.predicted_pixels[k]))
            self._row("per_class.csv", model, current, name, score, *pixels)
        if current.labelled:
            for table, regions in (("by_latitude.csv", result.latitude), ("by_azimuth.csv", result.azimuth)):
                for one in regions:
                    limits = ((one.start_deg + one.stop_deg) / 2, one.start_deg, one.stop_deg)
                    self._counted(table, model, current, one.confusion, *limits)
            for group, counted in result.groups.items():
                self._counted("by_group.csv", model, current, counted, group, result.group_images[group])
            names = list(current.space.names)
            frame = pd.DataFrame(counts.numpy(), index=names, columns=names)
            frame.to_csv(self.folder / f"confusion_{model}_{current.name}.csv", index_label="label")
        scalars = {
            f"{key}/{current.name}": float(v) for key, v in nested.items() if not isinstance(v, Mapping)
        }
        iou = {f"iou/{current.name}/{label}": v for label, v in nested.get("iou", {}).items()}
        return scalars | iou

    def close(self, sets: list[EvaluationSet], *, last: int) -> None:
        """Write the collected tables and hand the montages to the logger."""
        write_json(self.folder / "metrics.json", self.metrics)
        write_json(self.folder / "headlines.json", headlines(self.metrics, self.rows["per_class.csv"]))
        write_json(self.folder / "models.json", self.models)
        described: dict[str, Any] = {current.name: current.describe() for current in sets}
        for name in SETS:
            note = f"there is no {name.replace('_', ' ')} set"
            described.setdefault(name, {"images": 0, "labelled": False, "note": note})
        write_json(self.folder / "sets.json", described)
        for name, columns in TABLES.items():
            rows = self.rows[name]
            frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns))
            frame.to_csv(self.folder / name, index=False, float_format="%.6f")
        for (name, number), tiles in self.montages.items():
            self.logger.log_image(f"pictures/{name}/{number:02d}", np.concatenate(tiles, axis=0), last)

    def _row(self, table: str, model: str, current: EvaluationSet, *values: Any) -> dict[str, Any]:
        row = dict(zip(TABLES[table], (model, current.name, *values), strict=True))
        self.rows[table].append(row)
        return row

    def _counted(
        self, table: str, model: str, current: EvaluationSet, counted: ConfusionMatrix, *head: Any
    ) -> None:
        scores = (counted.miou(), counted.pixel_accuracy(), int(counted.matrix.sum()))
        row = self._row(table, model, current, *head, *scores)
        row |= {f"iou/{n}": float(v) for n, v in zip(current.space.names, counted.iou(), strict=True)}

    def _picture(self, current: EvaluationSet, number: int, what: str) -> Path:
        return self.pictures / f"{current.name}-{number:02d}-{what}.png"

    def _label(self, current: EvaluationSet, number: int, what: str, label: np.ndarray) -> None:
        image = Image.fromarray(label.astype(np.uint8))
        image.putpalette(current.space.colour_table().tobytes())
        image.save(self._picture(current, number, what))
        self.montages[current.name, number].append(current.space.colourise(label))


def headlines(metrics: Mapping[str, Mapping[str, Any]], per_class: list[dict[str, Any]]) -> dict[str, Any]:
    """The few numbers that tell two experiments apart, for ``dvc metrics`` and ``dvc exp show``.

    Returns:
        ``miou`` -> set -> model, ``miou_frequent`` -> set -> last model (mean over the eight classes with most
        labelled pixels), and what the last model gained on every set over the first: ``gain`` -> set.
    """
    first, last = next(iter(metrics)), list(metrics)[-1]
    found: dict[str, Any] = {"gain": {}, "miou": {}, "miou_frequent": {}}
    for name, scores in metrics[last].items():
        if "miou" not in scores:
            continue
        found["gain"][name] = scores["miou"] - metrics[first][name]["miou"]
        found["miou"][name] = {model: sets[name]["miou"] for model, sets in metrics.items()}
        rows = [row for row in per_class if row["model"] == last and row["set"] == name]
        rows = sorted(rows, key=lambda row: -row["label_pixels"])[:FREQUENT]
        found["miou_frequent"][name] = float(np.nanmean([row["iou"] for row in rows]))
    return found


def _nested_metrics(current: EvaluationSet, result: Evaluation) -> dict[str, Any]:
    """One model and set in metrics.json; absent classes are left out, JSON knows no nan."""
    predicted = result.predicted_pixels.double() / max(1, int(result.predicted_pixels.sum()))
    values: dict[str, Any] = {
        "images": result.images,
        "mean_confidence": result.mean_confidence,
        "predicted_share": {n: float(p) for n, p in zip(current.space.names, predicted, strict=True)},
    }
    if current.labelled:
        values["miou"] = result.confusion.miou()
        values["pixel_accuracy"] = result.confusion.pixel_accuracy()
        values["iou"] = {
            n: float(v) for n, v in zip(current.space.names, result.confusion.iou(), strict=True) if v == v
        }
        if len(current.shared) < current.space.num_classes:
            values["miou_shared"] = result.confusion.miou(current.shared)
        if result.solid_angle is not None:
            values["miou_solid_angle"] = float(iou(result.solid_angle).nanmean())
    return {k: v for k, v in values.items() if not (isinstance(v, float) and v != v)}
