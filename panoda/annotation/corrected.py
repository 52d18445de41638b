"""Corrected labels back from an annotation tool, as a declared data set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from panoda.annotation.cvat import Found, read_cvat
from panoda.annotation.label_studio import read_label_studio
from panoda.annotation.task import BEFORE, IMAGES, Photograph, Task, read_ids, read_task
from panoda.annotation.tiles import Corrected, lay_back
from panoda.data.formats.images import read_rgb
from panoda.deployment.model import label_png
from panoda.labels import SPACES, LabelSpace, get_label_space
from panoda.labels.spaces import is_space_file
from panoda.system.errors import DataError
from panoda.system.files import check_replaceable, explained_error, staged_directory

DATASET, LABELS, SPACE = "dataset.yaml", "labels", "space.yaml"
EXPORTS = ("export.zip", "export.json", "export")
"""Where the tool's export is looked for in the task's folder."""
SPLIT = "all"


@dataclass(frozen=True)
class ImportResult:
    """What ``import_task`` did.

    Attributes:
        changed: Name of each image of the data set -> share of its pixels that were changed.
        left_out: What is not annotated yet, a sentence each.
        failures: Images that are not in the data set, and why.
    """

    changed: dict[str, float]
    left_out: list[str]
    failures: list[str]


def import_task(folder: Path, out: Path, *, exported: Path | None = None) -> ImportResult:
    """Write ``images/``, ``labels/`` (train ids, 255 = unlabelled) and ``dataset.yaml`` into a new folder.

    Pixels that nobody changed are those of the prediction. Images of which nothing is annotated are left out.

    Args:
        folder: Task that ``panoda annotate export`` wrote; the photographs must still lie where they were.
        out: Folder of the data set; an earlier one there is replaced.
        exported: What the tool exported; None = ``export.zip``, ``export.json`` or ``export/`` in the task's folder.

    Raises:
        ValueError: no task, no export or one of another format or label space, or nothing that is annotated.
        OSError: disk full, or ``out`` cannot be written.
    """
    task = read_task(folder)
    source = exported or next((folder / name for name in EXPORTS if (folder / name).exists()), None)
    if source is None or not source.exists():
        raise ValueError(
            f"{source or folder / EXPORTS[0]}: no such file; name what the tool exported, or put it there as "
            f"{', '.join(EXPORTS)}"
        )
    check_replaceable(out, made=[DATASET], inputs=[folder, source], only=(DATASET, IMAGES, LABELS, SPACE))
    changed: dict[str, float] = {}
    left_out, failures, suffixes = list[str](), list[str](), set[str]()
    with ExitStack() as stack:
        found: Found
        if task.tool == "cvat":
            found = stack.enter_context(read_cvat(source, task))
        else:
            before = folder / BEFORE
            found = read_label_studio(
                source, task, lambda name, size: read_ids(before / f"{name}.png", *size)
            )
        known = {name for photograph in task.photographs for name in photograph.names}
        left_out += [f"{name}: not of this task" for name in found if name not in known]
        new = stack.enter_context(staged_directory(out))
        for name in (IMAGES, LABELS):
            (new / name).mkdir()
        for photograph in task.photographs:
            done = [name for name in photograph.names if name in found]
            if not done:
                left_out.append(f"{photograph.name}: not annotated")
                continue
            if len(done) < len(photograph.names):
                left_out.append(
                    f"{photograph.name}: {len(done)} of {len(photograph.names)} tiles are annotated, the rest stays as "
                    "predicted"
                )
            try:
                share, suffix = _import(photograph, folder, new, task, found)
            except (DataError, FileNotFoundError) as error:
                failures.append(explained_error(error))
            else:
                changed[photograph.name] = share
                suffixes.add(suffix)
        if not changed:
            raise ValueError(f"{source}: nothing to import: {'; '.join([*failures, *left_out])}")
        declaration = _declaration(out.absolute().name, task, sorted(suffixes), _space(new, task.space))
        (new / DATASET).write_text(yaml.safe_dump(declaration, sort_keys=False), encoding="utf-8")
    return ImportResult(changed, left_out, failures)


def _import(photograph: Photograph, folder: Path, out: Path, task: Task, found: Found) -> tuple[float, str]:
    """Write the photograph and its label; returns the share of changed pixels and the photograph's suffix."""
    size, path = (photograph.height, photograph.width), Path(photograph.image)
    before = read_ids(folder / BEFORE / f"{photograph.name}.png", *size)
    if photograph.tiles:
        tiles = []
        for tile in photograph.tiles:
            if tile.name in found:
                square = (tile.side, tile.side)
                old = read_ids(folder / BEFORE / f"{tile.name}.png", *square)
                tiles.append(Corrected(tile, old, found[tile.name](square)))
        label = lay_back(before, task.view(photograph), tiles)
    else:
        label = found[photograph.name](size)
    image = read_rgb(path)
    if (image.height, image.width) != size or photograph.bytes not in (None, path.stat().st_size):
        raise DataError(f"{path}: has changed since it was predicted; predict and export it again")
    shutil.copyfile(path, out / IMAGES / f"{photograph.name}{path.suffix.lower()}")
    label_png(label, task.space).save(out / LABELS / f"{photograph.name}.png")
    return float(np.mean(label != before)), path.suffix.lower()


def _declaration(name: str, task: Task, suffixes: list[str], space: str) -> dict[str, Any]:
    """The data set as ``panoda.data.formats.declaration`` reads it."""
    tree: dict[str, Any] = {
        "name": name,
        "title": "Corrected labels",
        "projection": task.projection,
        "fov_x_deg": task.fov_x_deg,
    }
    if task.latitudes_deg is not None:
        tree |= {"lat_top_deg": task.latitudes_deg[0], "lat_bottom_deg": task.latitudes_deg[1]}
    files: Mapping[str, Any] = {
        "images": [f"{IMAGES}/{{id}}{suffix}" for suffix in suffixes],
        "labels": [f"{LABELS}/{{id}}.png"],
    }
    return {
        **tree,
        "orientation": "exif",  # labels are upright
        "labels": {"space": space, "encoding": "ids"},
        "splits": {SPLIT: files},
    }


def _space(folder: Path, space: LabelSpace) -> str:
    """The label space for the declaration; one that is not built in gets a file beside it."""
    if space.name in SPACES and get_label_space(space.name).names == space.names:
        return space.name
    tree: dict[str, Any] = {"names": list(space.names), "palette": [list(colour) for colour in space.palette]}
    own = Path(space.name).expanduser()
    if is_space_file(space.name) and own.is_file():
        # A run names the space by the model's own file.
        tree["to"] = {str(own.absolute()): {name: name for name in space.names}}
    (folder / SPACE).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return SPACE
