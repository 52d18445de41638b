"""Label Studio's format: JSON tasks with brush masks as predictions, and a labelling interface in XML."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import numpy as np

from panoda.annotation.cvat import Found
from panoda.annotation.rle import decode, encode
from panoda.annotation.task import IMAGES, Task, check_size
from panoda.labels import IGNORE_INDEX, LabelSpace
from panoda.system.errors import DataError
from panoda.system.files import read_text

TASKS, INTERFACE = "tasks.json", "interface.xml"
CONTROL, OBJECT = "label", "image"
"""Names of the brush and of the picture in the interface."""


class LabelStudioWriter:
    """Writes ``tasks.json`` and ``interface.xml`` into a folder.

    Args:
        prefix: Address of ``images/`` for Label Studio; None = its local files, served from the folder that the
            task's folder ``out`` lies in.
    """

    def __init__(self, folder: Path, space: LabelSpace, *, out: Path, prefix: str | None = None) -> None:
        self.folder, self.space = folder, space
        local = f"/data/local-files/?d={quote(out.absolute().name)}/{IMAGES}/"
        self.prefix = local if prefix is None else f"{prefix.rstrip('/')}/"
        self._tasks: list[dict[str, Any]] = []

    def add(self, name: str, picture: str, label: np.ndarray) -> None:
        """Add the label (H, W) of ``images/PICTURE``."""
        height, width = label.shape
        result = [
            {
                "id": f"{name}-{k}",
                "from_name": CONTROL,
                "to_name": OBJECT,
                "type": "brushlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": encode(label == k),
                    "brushlabels": [self.space.names[k]],
                },
            }
            for k in np.unique(label).tolist()
            if k != IGNORE_INDEX
        ]
        data = {"image": f"{self.prefix}{quote(picture)}", "name": name}
        self._tasks.append({"data": data, "predictions": [{"model_version": "panoda", "result": result}]})

    def close(self) -> None:
        """Write the files."""
        (self.folder / TASKS).write_text(json.dumps(self._tasks), encoding="utf-8")
        labels = "\n".join(
            f"    <Label value={quoteattr(name)} background={quoteattr('#{:02x}{:02x}{:02x}'.format(*colour))}/>"
            for name, colour in zip(self.space.names, self.space.palette, strict=True)
        )
        (self.folder / INTERFACE).write_text(
            f'<View>\n  <Image name="{OBJECT}" value="$image" zoom="true" zoomControl="true"/>\n'
            f'  <BrushLabels name="{CONTROL}" toName="{OBJECT}">\n{labels}\n  </BrushLabels>\n</View>\n',
            encoding="utf-8",
        )


def read_label_studio(
    exported: Path, task: Task, before: Callable[[str, tuple[int, int]], np.ndarray]
) -> Found:
    """The labels in what Label Studio exported as JSON; tasks without an annotation are left out.

    Where masks lie over each other, a label that was not there before wins, and of several the last; pixels that no
    mask covers are unlabelled.

    Args:
        before: The exported label of a picture, by its name and size.

    Raises:
        DataError: another format, or labels of another label space.
    """
    path = exported
    if exported.is_dir():
        found = sorted(exported.glob("*.json"))
        if len(found) != 1:
            raise DataError(f"{exported}: {len(found)} JSON files in it, expected the one that was exported")
        path = found[0]
    try:
        entries = json.loads(read_text(path))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as JSON; export the project as JSON") from error
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "data" in e for e in entries):
        raise DataError(f"{path}: no list of tasks; export the project as JSON (not JSON-MIN)")
    labels: Found = {}
    for entry in entries:
        done = [one for one in entry.get("annotations") or () if not one.get("was_cancelled")]
        if done:
            data = entry["data"]
            name = str(data.get("name") or Path(unquote(str(data.get("image", "")))).stem)
            latest = max(done, key=lambda one: str(one.get("updated_at", "")))
            where = f"{path}: {name}"
            masks = [(_class_of(where, one, task.space), one) for one in latest.get("result") or ()]
            labels[name] = partial(_read, where, masks, partial(before, name))
    return labels


def _class_of(where: str, result: Mapping[str, Any], space: LabelSpace) -> int:
    names = (result.get("value") or {}).get("brushlabels") or []
    if result.get("type") != "brushlabels" or len(names) != 1:
        raise DataError(
            f"{where}: a region of type {result.get('type')} with {len(names)} labels, expected brush masks of one "
            "label each"
        )
    if names[0] not in space.names:
        raise DataError(
            f"{where}: label {names[0]!r} is none of the model's label space {space.name}: "
            f"{', '.join(space.names)}"
        )
    return space.index(names[0])


def _read(
    where: str,
    masks: list[tuple[int, Any]],
    before: Callable[[tuple[int, int]], np.ndarray],
    size: tuple[int, int],
) -> np.ndarray:
    """The label (H, W) of the masks, each of a class."""
    old = before(size)
    label = np.full(size, IGNORE_INDEX, dtype=np.uint8)
    for k, result in masks:
        check_size(where, (result.get("original_height"), result.get("original_width")), size)
        try:
            mask = decode(result["value"].get("rle") or (), *size)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        # What was there before wins over nothing alone.
        label[mask & ((old != k) | (label == IGNORE_INDEX))] = k
    return label
