"""What lies in a folder of predictions: a record for every image, the manifest, the summary tables.

``manifest.json`` names the model, the options and every image with its geometry, sizes and files. Prediction goes on
from it: an image whose file, model and options are unchanged is not predicted again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from panoda.data.formats.browse import MANIFEST, PREDICTIONS
from panoda.deployment.model import Model, Prediction
from panoda.labels import LabelSpace
from panoda.system.errors import DataError
from panoda.system.files import sha256_file, staged_file, write_json

SUMMARY = "summary.csv"
FORMAT = f"{PREDICTIONS}1"
NAME_BYTES = 150
"""Names of results are cut to this length; file systems take 255."""
COLUMNS = (
    "image",
    "name",
    "height",
    "width",
    "projection",
    "fov_x_deg",
    "lat_top_deg",
    "lat_bottom_deg",
    "wrapped",
    "taken_for",
    "mean_confidence",
    "sky_view_factor",
    "green_view_factor",
)
"""Columns of the summary before the classes: ``road`` is a share of pixels, ``road (sr)`` of the solid angle."""
MEASURED = frozenset({*COLUMNS[5:8], *COLUMNS[10:]})
"""Columns of numbers that may be missing."""


def describe_model(model: Model) -> dict[str, Any]:
    """What the manifest says of the model."""
    card = model.card
    return {
        "file": str(model.file),
        "sha256": None if model.file is None else sha256_file(model.file),
        "name": card.name,
        "stage": card.stage,
        "label_space": card.label_space,
        "class_names": list(card.class_names),
        "palette": [list(colour) for colour in card.space.palette],
    }


def describe_file(path: Path) -> dict[str, Any]:
    """What tells whether an image file has changed."""
    about = path.stat()
    return {"bytes": about.st_size, "modified_ns": about.st_mtime_ns}


def check_unchanged(record: Mapping[str, Any], height: int, width: int) -> None:
    """DataError where an image of this size is not the one of the record any more, by its pixels or its bytes.

    Its time is not looked at: a copy is the same image.
    """
    path = Path(record["image"])
    same = (height, width) == (record["height"], record["width"])
    if not same or describe_file(path)["bytes"] != record["file"]["bytes"]:
        raise DataError(f"{path}: has changed since it was predicted; predict it again")


def describe(found: Prediction, path: Path, name: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The record of one image; angles in degrees, shares and factors 0..1."""
    view, (height, width) = found.view, found.label.shape
    top, bottom = (None, None)
    if view.projection == "erp":
        top, bottom = (round(math.degrees(edge), 4) for edge in view.band(height, width))
    return {
        "image": str(path),
        "file": describe_file(path),
        "name": name,
        "files": dict(files),
        "height": height,
        "width": width,
        "working_size": list(found.working_size),
        "projection": view.projection,
        "fov_x_deg": view.fov_x_deg,
        "lat_top_deg": top,
        "lat_bottom_deg": bottom,
        "centre_lon_deg": view.centre_lon_deg,
        "heading_deg": view.pose.heading_deg,
        "pitch_deg": view.pose.pitch_deg,
        "roll_deg": view.pose.roll_deg,
        "levelled_by": None if view.level is None else list(view.level),
        "wrapped": view.wrap,
        "taken_for": str(view),
        **measure(found),
    }


def measure(found: Prediction) -> dict[str, Any]:
    """What a record says of the labels: shares, factors and confidence, 0..1; None where they are not known."""
    factors = found.view_factors()
    known = found.view.projection == "erp" or found.view.fov_x_deg is not None
    return {
        "mean_confidence": round(float(found.confidence_255.mean()) / 255, 4),
        "pixel_shares": found.shares(),
        "solid_angle_shares": found.shares("solid_angle") if known else None,
        "sky_view_factor": factors["sky"],
        "green_view_factor": factors["green"],
    }


class Records:
    """The records of a folder of predictions.

    Attributes:
        images: Record of each image, by its path as it was named.
        failures: Reason why an image was not predicted, by its path.
    """

    def __init__(self, out: Path, model: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Those of an earlier call with the same model and options, else none."""
        self._out, self._head = out, {"format": FORMAT, "model": dict(model), "options": dict(options)}
        self.images: dict[str, dict[str, Any]] = {}
        self._named: dict[Path, str] = {}  # by whatever call: their files lie there
        self.failures: dict[str, str] = {}
        earlier = read_manifest(out)
        if earlier is None:
            return
        self._named = {Path(record["image"]): str(record["name"]) for record in earlier["images"]}
        same = earlier["options"] == json.loads(json.dumps(options))
        # The model is its bytes, wherever they lie.
        if same and earlier["model"]["sha256"] == model["sha256"]:
            complete = (r for r in earlier["images"] if all((out / f).is_file() for f in r["files"].values()))
            self.images = {record["image"]: record for record in complete}

    def done(self, path: Path, frames: Mapping[str, Any] | None = None) -> bool:
        """Whether an image, or these frames of a video, are predicted already and have not changed since."""
        record = self.images.get(str(path))
        if record is None or record.get("frames", {}).get("asked") != frames:
            return False
        try:
            return record["file"] == describe_file(path)
        except OSError:
            return False  # its reason is told where it is opened

    def names(self, paths: Sequence[Path]) -> dict[Path, str]:
        """A name without suffix for the files of every image; a number is added where names repeat."""
        names = dict(self._named)
        taken = set(names.values())
        for path in paths:
            if path in names:
                continue
            # While they are written, files have longer names still.
            stem = path.stem.encode()[:NAME_BYTES].decode(errors="ignore")
            name, number = stem, 2
            while name in taken:
                name, number = f"{stem}-{number}", number + 1
            taken.add(name)
            names[path] = name
        return names

    def manifest(self) -> dict[str, Any]:
        """Everything, as it is written."""
        failures = [{"image": image, "reason": reason} for image, reason in self.failures.items()]
        return {**self._head, "images": list(self.images.values()), "failures": failures}

    def write_manifest(self) -> None:
        """Write manifest.json, atomically."""
        write_json(self._out / MANIFEST, self.manifest())

    def write_summary(self, space: LabelSpace) -> Path:
        """Write the summary of all images as CSV and Parquet; returns the CSV."""
        return write_table(list(self.images.values()), COLUMNS, space, self._out / SUMMARY)


def read_predictions(out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The manifest of a folder of predictions whose labels are train ids, with its images alone: videos are said.

    Raises:
        ValueError: no predictions of images there, or labels with ids of another data set.
        OSError: it cannot be read.
    """
    manifest = read_manifest(out)
    if manifest is None and (out / MANIFEST).is_file():
        raise ValueError(f"{out / MANIFEST}: cannot be read, or is of another version; predict again")
    images = []
    for record in manifest["images"] if manifest else []:
        if "frames" in record:
            say(f"left out: {record['image']}: a video; watch {out / record['files']['overlay']}")
        else:
            images.append(record)
    if manifest is None or not images:
        raise ValueError(
            f"{out}: no predictions of images here; `panoda predict IMAGES --out {out}` makes some"
        )
    if manifest["options"]["ids"] is not None:
        raise ValueError(f"{out}: its labels have ids of another data set; predict without --ids")
    return {**manifest, "images": images}


def write_table(
    records: Sequence[Mapping[str, Any]], columns: Sequence[str], space: LabelSpace, csv: Path
) -> Path:
    """Write ``columns`` of records and their class shares, a row each, as CSV, and as Parquet beside it."""
    rows = []
    for record in records:
        row = {column: record[column] for column in columns} | record["pixel_shares"]
        angles = record["solid_angle_shares"] or {}
        rows.append(row | {f"{name} (sr)": angles.get(name) for name in space.names})
    classes = [*space.names, *(f"{name} (sr)" for name in space.names)]
    table = pd.DataFrame(rows, columns=[*columns, *classes])
    for column in [*(name for name in columns if name in MEASURED), *classes]:
        table[column] = table[column].astype("float64")
    with staged_file(csv) as aside:
        table.to_csv(aside, index=False, float_format="%.6f")
    with staged_file(csv.with_suffix(".parquet")) as aside:
        table.to_parquet(aside, index=False)
    return csv


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a folder of predictions; None where there is none of this version.

    Raises:
        OSError: it cannot be read.
    """
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None
