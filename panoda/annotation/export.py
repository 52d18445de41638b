"""Predictions to an annotation tool: pictures, pre-labels in the tool's format, and the way back (``task.json``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from panoda.annotation.cvat import ANNOTATIONS, LABELS, CvatWriter
from panoda.annotation.label_studio import INTERFACE, TASKS, LabelStudioWriter
from panoda.annotation.task import BEFORE, FILE, IMAGES, Photograph, Task, Tile, Tool, read_ids
from panoda.data.formats.images import read_upright, save_jpeg
from panoda.deployment.model import Prediction, label_png
from panoda.deployment.records import check_unchanged, read_predictions
from panoda.geometry.views import Views
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError
from panoda.system.files import check_replaceable, explained_error, staged_directory, write_json
from panoda.system.progress import track

AS_THEY_ARE = (".jpg", ".jpeg", ".png")
"""Files that every tool shows, if they are stored upright."""
MADE = (FILE, IMAGES, BEFORE, ANNOTATIONS, LABELS, TASKS, INTERFACE)
"""All that lies in a task; what a tool exported may have been put there, too, and is not to be lost."""
TILE = "-view"
"""Between the name of a photograph and the number of its tile."""


@dataclass(frozen=True)
class ExportResult:
    """What ``export_task`` did.

    Attributes:
        task: What it wrote.
        failures: Images that are not in it, and why.
    """

    task: Task
    failures: list[str]


def export_task(
    predictions: Path,
    out: Path,
    *,
    tool: Tool,
    views: Views | None = None,
    chosen: Path | None = None,
    prefix: str | None = None,
    say: Callable[[str], None] = print,
    progress: bool = False,
) -> ExportResult:
    """Write ``images/``, the tool's files, ``before/`` and ``task.json`` into a new folder.

    Args:
        predictions: Folder that ``panoda predict`` wrote; the photographs must still lie where they were.
        out: Folder of the task; an earlier task there is replaced.
        views: Perspective tiles to cut panoramas into; None = whole images.
        chosen: ``chosen.csv`` of ``panoda rank``: only what is chosen there.
        prefix: label-studio: address of ``images/``; None = its local files.
        say: Told which videos are left out.

    Raises:
        ValueError: no predictions, pictures of several kinds, or none that can be exported.
        OSError: disk full, or ``out`` cannot be written.
    """
    manifest = read_predictions(predictions, say)
    check_replaceable(out, made=[FILE], inputs=[predictions], only=MADE)
    records, failures = _chosen(manifest["images"], chosen)
    model, first = manifest["model"], records[0]
    kind = _kind(first)
    for record in records:
        if _kind(record) != kind:
            raise ValueError(
                f"{record['image']} is a {record['taken_for']}, and {first['image']} a {first['taken_for']}: a data "
                "set has images of one kind; predict each kind into a folder of its own"
            )
    if kind[0] == "pinhole" and views is not None:
        raise ValueError(f"{first['image']}: a photograph is a perspective view itself; leave out --views")
    if kind[1] is None:
        raise ValueError(f"{first['image']}: its lens is unknown; predict again with --fov DEGREES")
    names = {record["name"] for record in records}
    for name in names if views is not None else ():
        base, tile, number = name.rpartition(TILE)
        if tile and number.isdecimal() and base in names:
            raise ValueError(
                f"{name}: so is a tile of {base} named; rename that photograph, and predict it again"
            )
    task = Task(
        tool=tool,
        label_space=model["label_space"],
        class_names=tuple(model["class_names"]),
        palette=tuple(map(tuple, model["palette"])),
        projection=kind[0],
        fov_x_deg=kind[1],
        latitudes_deg=None if kind[2] is None else (kind[2], kind[3]),
        photographs=(),
    )
    with staged_directory(out) as folder:
        for name in (IMAGES, BEFORE):
            (folder / name).mkdir()
        writer = (
            CvatWriter(folder, task.space)
            if tool == "cvat"
            else LabelStudioWriter(folder, task.space, out=out, prefix=prefix)
        )
        done = []
        for record in track(records, "exporting", enabled=progress):
            try:
                done.append(_export(record, predictions, folder, task, views, writer.add))
            except (DataError, FileNotFoundError) as error:
                failures.append(explained_error(error))
        if not done:
            raise ValueError(f"nothing to export: {'; '.join(failures)}")
        writer.close()
        task = task.model_copy(update={"photographs": tuple(done)})
        write_json(folder / FILE, task.model_dump(mode="json"))
    return ExportResult(task, failures)


def _chosen(
    records: Sequence[Mapping[str, Any]], chosen: Path | None
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The records of what is chosen, and what is chosen but not predicted."""
    if chosen is None:
        return list(records), []
    try:
        table = pd.read_csv(chosen)
        wanted = table.loc[table["rank"].notna(), "image"].tolist()
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{chosen}: not a table of `panoda rank`, which has columns rank and image"
        ) from error
    found = {record["image"]: record for record in records}
    missing = [f"{image}: chosen, but not predicted" for image in wanted if image not in found]
    if len(missing) == len(wanted):
        raise ValueError(f"{chosen}: nothing that is chosen there was predicted; run `panoda predict` on it")
    return [found[image] for image in wanted if image in found], missing


def _kind(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What images of one data set have in common: projection, field of view, latitudes."""
    return tuple(record[key] for key in ("projection", "fov_x_deg", "lat_top_deg", "lat_bottom_deg"))


def _export(
    record: Mapping[str, Any],
    predictions: Path,
    folder: Path,
    task: Task,
    views: Views | None,
    add: Callable[[str, str, np.ndarray], None],
) -> Photograph:
    """Write the pictures and labels of one image."""
    path, name, size = Path(record["image"]), record["name"], (record["height"], record["width"])
    image, orientation = read_upright(path)
    check_unchanged(record, image.height, image.width)
    label = read_ids(predictions / record["files"]["label"], *size)
    photograph = Photograph(
        name=name,
        image=str(path),
        bytes=record["file"]["bytes"],
        height=size[0],
        width=size[1],
        centre_lon_deg=record["centre_lon_deg"],
        level=None if record["levelled_by"] is None else tuple(record["levelled_by"]),
    )
    label_png(label, task.space).save(folder / BEFORE / f"{name}.png")
    if views is None:
        plain = orientation == 1 and path.suffix.lower() in AS_THEY_ARE
        picture = f"{name}{path.suffix.lower() if plain else '.png'}"
        if plain:
            shutil.copyfile(path, folder / IMAGES / picture)
        else:
            image.save(folder / IMAGES / picture)
        add(name, picture, label)
        return photograph
    found = Prediction(
        np.asarray(image), label, np.zeros((0, 0), np.uint8), task.space, task.view(photograph), size
    )
    tiles = []
    for number, view in enumerate(found.views(views), start=1):
        if (view.label == IGNORE_INDEX).all():
            continue  # beside a panorama that is no full circle
        tile = Tile(
            name=f"{name}{TILE}{number:02d}",
            azimuth_deg=view.azimuth_deg,
            elevation_deg=view.elevation_deg,
            fov_deg=view.fov_deg,
            side=len(view.label),
        )
        label_png(view.label, task.space).save(folder / BEFORE / f"{tile.name}.png")
        save_jpeg(Image.fromarray(view.image), folder / IMAGES / f"{tile.name}.jpg", quality=95)
        add(tile.name, f"{tile.name}.jpg", view.label)
        tiles.append(tile)
    return photograph.model_copy(update={"tiles": tuple(tiles)})
