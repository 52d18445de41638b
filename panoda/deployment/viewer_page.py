"""One HTML file to look around in predictions: photograph, labels, confidence, on the sphere, without a network.

Two folders of predictions of the same photographs are compared: before and after. The page itself is in ``viewer/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from panoda.data.formats.images import read_rgb
from panoda.data.formats.pixels import UNREADABLE
from panoda.deployment.records import check_unchanged, read_predictions
from panoda.deployment.viewer import DATA, indexed_uri, jpeg_uri, json_in_page, viewer_text
from panoda.geometry.area import Area
from panoda.geometry.erp import grid_sample_any
from panoda.geometry.pinhole import rays_to_pinhole
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError
from panoda.system.files import explained_error, staged_file

PAGE, COMPARISON = "view.html", "compare.html"
WIDTH = 2048
"""Pixels across of a picture in the page; every graphics card takes 4096."""
LARGEST = 4096
UNKNOWN_FOV_DEG = 60.0
"""Photographs of an unknown lens are shown so wide."""
THUMBNAIL = (160, 80)
PLACE = ("height", "width", "projection", "fov_x_deg", "lat_top_deg", "lat_bottom_deg", "centre_lon_deg")
"""What two predictions of a photograph must have in common to be compared."""


def write_viewer(
    out: Path, *, before: Path | None = None, width: int = WIDTH, say: Callable[[str], None] = print
) -> Path:
    """Write ``view.html`` into a folder of predictions, or ``compare.html`` where there is one of before, too.

    Args:
        out: What ``panoda predict`` wrote; the photographs must still lie where they were.
        before: Other predictions of the same photographs, which are matched by their path.
        width: Largest width of a picture in pixels.
        say: Told which images are left out, and why.

    Raises:
        ValueError: no predictions there, none whose photograph can be read, or two that cannot be compared.
    """
    if not 256 <= width <= LARGEST:
        raise ValueError(f"width is {width}: expected 256 to {LARGEST} pixels")
    folders = {"Labels": out} if before is None else {"Before": before, "After": out}
    manifests = [read_predictions(folder, say) for folder in folders.values()]
    images = []
    for records in _matched(list(folders.values()), manifests, say):
        try:
            images.append(_image(dict(zip(folders.items(), records, strict=True)), width))
        except (DataError, OSError) as error:
            say(f"left out: {explained_error(error) if isinstance(error, OSError) else error}")
    if not images:
        raise ValueError(f"{out}: none of the photographs can be shown any more")
    model = manifests[-1]["model"]
    names = zip(model["class_names"], model["palette"], strict=True)
    classes = [{"name": name, "colour": colour} for name, colour in names]
    data = json_in_page({"classes": classes, "images": images})
    page = out / (PAGE if before is None else COMPARISON)
    with staged_file(page) as aside:
        aside.write_text(viewer_text().replace(DATA, data), encoding="utf-8")
    return page


def _matched(
    folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]], say: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    """For every photograph that all folders have, its record in each of them."""
    spaces = [manifest["model"]["class_names"] for manifest in manifests]
    if spaces[0] != spaces[-1]:
        names = " and ".join(f"{manifest['model']['label_space']}" for manifest in manifests)
        raise ValueError(f"{folders[0]} and {folders[-1]}: labels of different classes ({names})")
    records = [{record["image"]: record for record in manifest["images"]} for manifest in manifests]
    shared = [image for image in records[-1] if image in records[0]]
    for folder, own in zip(folders, records, strict=True):
        only = [Path(image).name for image in own if image not in shared]
        if only:
            some = ", ".join(only[:3]) + (", ..." if len(only) > 3 else "")
            say(f"left out: {len(only)} {'image' if len(only) == 1 else 'images'} in {folder} alone ({some})")
    if not shared:
        raise ValueError(
            f"{folders[0]} and {folders[-1]}: no photograph in common; images are matched by their path"
        )
    return [[own[image] for own in records] for image in shared]


def _image(predictions: Mapping[tuple[str, Path], Mapping[str, Any]], width: int) -> dict[str, Any]:
    """What the page needs of one image, of which (title, folder) -> record are the predictions."""
    record = next(iter(predictions.values()))
    if any(other[key] != record[key] for other in predictions.values() for key in PLACE):
        raise DataError(f"{record['image']}: its two predictions take it for different things")
    photo = read_rgb(Path(record["image"]))
    for one in predictions.values():
        check_unchanged(one, photo.height, photo.width)
    taken = record["taken_for"]
    files = [
        (out / one["files"]["label"], out / one["files"]["confidence"])
        for (_, out), one in predictions.items()
    ]
    layers = [(_grey(label), _grey(confidence)) for label, confidence in files]
    if record["projection"] == "pinhole":
        photo, layers, area = _on_the_sphere(record, photo, layers, width)
        if record["fov_x_deg"] is None:
            taken += f"; shown {UNKNOWN_FOV_DEG:g} degrees wide"
    else:
        fov = math.radians(record["fov_x_deg"])
        centre = math.radians(record["centre_lon_deg"])
        edges = (math.radians(record["lat_top_deg"]), math.radians(record["lat_bottom_deg"]))
        area = Area(centre - fov / 2, fov, *edges)
    if len(predictions) > 1:
        taken += "".join(f"\n{title}: {out}" for title, out in predictions)
    factor = min(1.0, width / photo.width, width / photo.height)
    size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
    half = (max(1, size[0] // 2), max(1, size[1] // 2))
    photo = photo.resize(size, Image.Resampling.LANCZOS)
    thumbnail = photo.copy()
    thumbnail.thumbnail(THUMBNAIL)
    return {
        "name": record["name"],
        "takenFor": taken,
        "fov": math.degrees(area.fov_x),
        "latTop": math.degrees(area.lat_top),
        "latBottom": math.degrees(area.lat_bottom),
        "centreLon": math.degrees(area.lon_left + area.fov_x / 2),
        "photo": jpeg_uri(photo, 85),
        "thumbnail": jpeg_uri(thumbnail, 70),
        "maps": [
            {
                "title": title,
                "label": indexed_uri(np.asarray(label.resize(size, Image.Resampling.NEAREST))),
                "confidence": indexed_uri(np.asarray(confidence.resize(half, Image.Resampling.BOX))),
            }
            for (title, _), (label, confidence) in zip(predictions, layers, strict=True)
        ],
    }


Layers = list[tuple[Image.Image, Image.Image]]
"""Label and confidence of every prediction of an image."""


def _on_the_sphere(
    record: Mapping[str, Any], photo: Image.Image, layers: Layers, width: int
) -> tuple[Image.Image, Layers, Area]:
    """A photograph and its layers as parts of a sphere, straight ahead."""
    fov = math.radians(record["fov_x_deg"] or UNKNOWN_FOV_DEG)
    half = math.atan(math.tan(fov / 2) * photo.height / photo.width)
    area = Area(-fov / 2, fov, half, -half)
    across = min(width, photo.width)
    rays = area.rays(max(1, round(across * 2 * half / fov)), across)
    x, y, inside = rays_to_pinhole(rays, height=photo.height, width=photo.width, fov_x=fov)
    grid = torch.stack((2 * x / photo.width - 1, 2 * y / photo.height - 1), dim=-1)[None]

    def laid(image: Image.Image, mode: str, fill: int) -> Image.Image:
        values = torch.from_numpy(np.array(image)).reshape(photo.height, photo.width, -1).permute(2, 0, 1)
        found = grid_sample_any(values[None], grid, mode=mode).masked_fill(~inside, fill)[0]
        return Image.fromarray((found[0] if len(found) == 1 else found.permute(1, 2, 0)).numpy())

    moved = [(laid(label, "nearest", IGNORE_INDEX), laid(sure, "bilinear", 0)) for label, sure in layers]
    return laid(photo, "bilinear", 31), moved, area


def _grey(path: Path) -> Image.Image:
    """The values of a PNG, its palette left aside."""
    try:
        with Image.open(path) as image:
            return Image.fromarray(np.asarray(image))
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read ({error}); remove it, and predict its image again"
        ) from error
