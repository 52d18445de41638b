"""CVAT's format "Segmentation mask 1.1": PASCAL VOC's folders with label colours in ``labelmap.txt``.

Of the formats that CVAT imports as masks it keeps every pixel. ``SegmentationClass`` has the classes in colours, and
``SegmentationObject`` what CVAT makes one mask of, here a class of an image each; without it CVAT would want a label
``background``, too. Black is unlabelled.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from panoda.annotation.task import Task, check_size
from panoda.data.acquire.unpack import unpack
from panoda.data.formats.dataset import Encoding
from panoda.data.formats.decode import colour_code, decode_label
from panoda.labels import IGNORE_INDEX, LabelSpace
from panoda.labels.spaces import generated_palette
from panoda.system.errors import DataError
from panoda.system.files import read_text

ANNOTATIONS, LABELS, LABELMAP = "annotations.zip", "labels.json", "labelmap.txt"
CLASSES, OBJECTS, LIST = "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation/default.txt"
UNLABELLED = "background"
"""CVAT's name of the colour of what has no label."""
Found = dict[str, Callable[[tuple[int, int]], np.ndarray]]
"""Name of an exported picture -> its label (H, W) uint8 for a height and width."""


class CvatWriter:
    """Writes ``annotations.zip`` and ``labels.json`` into a folder."""

    def __init__(self, folder: Path, space: LabelSpace) -> None:
        """Begin; ``close`` ends the archive."""
        self.folder, self.names = folder, list[str]()
        distinct = set(space.palette)
        usable = len(distinct) == space.num_classes and (0, 0, 0) not in distinct
        self.colours = space.palette if usable else generated_palette(space.num_classes)
        self.space = space
        self._table, self._objects = (
            LabelSpace(space.name, space.names, palette).colour_table()
            for palette in (self.colours, generated_palette(space.num_classes))
        )
        self._zip = zipfile.ZipFile(folder / ANNOTATIONS, "w", zipfile.ZIP_STORED)

    def add(self, name: str, picture: str, label: np.ndarray) -> None:
        """Add the label (H, W) of ``images/PICTURE``."""
        self.names.append(name)
        for folder, table in ((CLASSES, self._table), (OBJECTS, self._objects)):
            stream = io.BytesIO()
            Image.fromarray(table[label]).save(stream, format="PNG")
            self._zip.writestr(f"{folder}/{name}.png", stream.getvalue())

    def close(self) -> None:
        """Write what is left."""
        named = list(zip(self.space.names, self.colours, strict=True))
        lines = [(UNLABELLED, (0, 0, 0)), *named] if UNLABELLED not in self.space.names else named
        text = "".join(f"{name}:{','.join(map(str, colour))}::\n" for name, colour in lines)
        self._zip.writestr(LABELMAP, "# label:color_rgb:parts:actions\n" + text)
        self._zip.writestr(LIST, "".join(f"{name}\n" for name in self.names))
        self._zip.close()
        labels = [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colour), "type": "mask", "attributes": []}
            for name, colour in named
        ]
        (self.folder / LABELS).write_text(json.dumps(labels, indent=2) + "\n", encoding="utf-8")


@contextmanager
def read_cvat(exported: Path, task: Task) -> Iterator[Found]:
    """The labels in what CVAT exported as "Segmentation mask 1.1": the zip, or its folder.

    Raises:
        DataError: another format, or a task of another label space.
    """
    with TemporaryDirectory(prefix="panoda-") as scratch:
        folder = exported
        if not exported.is_dir():
            folder = Path(scratch)
            unpack(exported, folder)
        labelmap = next(iter(sorted(folder.rglob(LABELMAP))), None)
        if labelmap is None:
            raise DataError(
                f"{exported}: no {LABELMAP} in it; export the task from CVAT as 'Segmentation mask 1.1'"
            )
        encoding = _encoding(labelmap, exported, task.space)
        files = sorted((labelmap.parent / CLASSES).rglob("*.png"))

        def read(path: Path, size: tuple[int, int]) -> np.ndarray:
            where = f"{exported}: {path.relative_to(labelmap.parent)}"
            try:
                label = decode_label(path, encoding).ids
            except DataError as error:
                raise DataError(str(error).replace(str(path), where)) from error
            check_size(where, label.shape, size)
            return label

        yield {path.stem: partial(read, path) for path in files}


def _encoding(labelmap: Path, exported: Path, space: LabelSpace) -> Encoding:
    """Colour -> train id."""
    pairs: dict[int, int] = {}
    for number, line in enumerate(read_text(labelmap).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{exported}: {LABELMAP}: line {number}"
        name, _, rest = line.strip().partition(":")
        try:
            red, green, blue = (int(value) for value in rest.split(":")[0].split(","))
        except ValueError as error:
            raise DataError(f"{where}: {line!r}, expected label:R,G,B::") from error
        if name not in space.names and name != UNLABELLED:
            raise DataError(
                f"{where}: label {name!r} is none of the model's label space {space.name}: "
                f"{', '.join(space.names)}"
            )
        code = colour_code(red, green, blue)
        if code in pairs:
            raise DataError(f"{where}: {name!r} has the colour of another label; give it one of its own")
        pairs[code] = space.names.index(name) if name in space.names else IGNORE_INDEX
    pairs.setdefault(0, IGNORE_INDEX)
    return Encoding("palette", tuple(pairs.items()))
