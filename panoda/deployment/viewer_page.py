"""One HTML file to look around in predictions: photograph, labels, confidence, on the sphere, without a network.

The viewer is pannellum (``viewer/pannellum.js``, 2.5.7, MIT, licence beside it and in the page).
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from panoda.data.formats.images import read_rgb
from panoda.data.formats.pixels import UNREADABLE
from panoda.deployment.records import read_predictions
from panoda.geometry.area import Area
from panoda.geometry.erp import grid_sample_any
from panoda.geometry.pinhole import rays_to_pinhole
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError
from panoda.system.files import explained_error, staged_file

PARTS = Path(__file__).with_name("viewer")
FILES = ("viewer.html", "viewer.css", "viewer.js", "pannellum.css", "pannellum.js", "pannellum.LICENSE")
PAGE = "view.html"
WIDTH = 2048
"""Pixels across of a picture in the page; every graphics card takes 4096."""
LARGEST = 4096
UNKNOWN_FOV_DEG = 60.0
"""Photographs of an unknown lens are shown so wide."""
THUMBNAIL = (160, 80)


def write_viewer(out: Path, *, width: int = WIDTH, say: Callable[[str], None] = print) -> Path:
    """Write ``view.html`` into a folder of predictions.

    Args:
        out: What ``panoda predict`` wrote; the photographs must still lie where they were.
        width: Largest width of a picture in pixels.
        say: Told which images are left out, and why.

    Returns:
        The page.

    Raises:
        ValueError: no predictions there, or none whose photograph can be read.
    """
    if not 256 <= width <= LARGEST:
        raise ValueError(f"width is {width}: expected 256 to {LARGEST} pixels")
    manifest = read_predictions(out, say)
    images = []
    for record in manifest["images"]:
        try:
            images.append(_image(out, record, width))
        except (DataError, OSError) as error:
            say(f"left out: {explained_error(error) if isinstance(error, OSError) else error}")
    if not images:
        raise ValueError(f"{out}: none of the photographs can be read any more")
    model = manifest["model"]
    classes = [
        {"name": name, "colour": colour}
        for name, colour in zip(model["class_names"], model["palette"], strict=True)
    ]
    for image in images:
        image["shares"] = [image["shares"][entry["name"]] for entry in classes]
    # A tag in a file name would end the script that the page keeps its data in.
    data = json.dumps({"classes": classes, "images": images}).replace("<", "\\u003c")
    parts = {name: (PARTS / name).read_text(encoding="utf-8") for name in FILES} | {"data": data}
    text = re.sub(r"@@([\w.]+)@@", lambda found: parts[found[1]], parts["viewer.html"])
    with staged_file(out / PAGE) as aside:
        aside.write_text(text, encoding="utf-8")
    return out / PAGE


def _image(out: Path, record: Mapping[str, Any], width: int) -> dict[str, Any]:
    """What the page needs of one image."""
    photo = read_rgb(Path(record["image"]))
    if (photo.height, photo.width) != (record["height"], record["width"]):
        raise DataError(f"{record['image']}: its size has changed since it was predicted; predict it again")
    taken = record["taken_for"]
    label, confidence = (_grey(out / record["files"][kind]) for kind in ("label", "confidence"))
    if record["projection"] == "pinhole":
        photo, label, confidence, area = _on_the_sphere(record, photo, label, confidence, width)
        if record["fov_x_deg"] is None:
            taken += f"; shown {UNKNOWN_FOV_DEG:g} degrees wide"
    else:
        fov = math.radians(record["fov_x_deg"])
        centre = math.radians(record["centre_lon_deg"])
        edges = (math.radians(record["lat_top_deg"]), math.radians(record["lat_bottom_deg"]))
        area = Area(centre - fov / 2, fov, *edges)
    factor = min(1.0, width / photo.width, width / photo.height)
    size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
    half = (max(1, size[0] // 2), max(1, size[1] // 2))
    photo = photo.resize(size, Image.Resampling.LANCZOS)
    thumbnail = photo.copy()
    thumbnail.thumbnail(THUMBNAIL)
    return {
        "name": record["name"],
        "takenFor": taken,
        "width": size[0],
        "height": size[1],
        "fov": math.degrees(area.fov_x),
        "latTop": math.degrees(area.lat_top),
        "latBottom": math.degrees(area.lat_bottom),
        "centreLon": math.degrees(area.lon_left + area.fov_x / 2),
        "photo": _jpeg(photo, 85),
        "thumbnail": _jpeg(thumbnail, 70),
        "label": _packed(label.resize(size, Image.Resampling.NEAREST)),
        "confidence": _packed(confidence.resize(half, Image.Resampling.BOX)),
        "confidenceSize": half,
        "shares": record["pixel_shares"],
    }


def _on_the_sphere(
    record: Mapping[str, Any], photo: Image.Image, label: Image.Image, confidence: Image.Image, width: int
) -> tuple[Image.Image, Image.Image, Image.Image, Area]:
    """A photograph, its label and confidence as parts of a sphere, straight ahead."""
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

    return (
        laid(photo, "bilinear", 31),
        laid(label, "nearest", IGNORE_INDEX),
        laid(confidence, "bilinear", 0),
        area,
    )


def _grey(path: Path) -> Image.Image:
    """The values of a PNG, its palette left aside."""
    try:
        with Image.open(path) as image:
            return Image.fromarray(np.asarray(image))
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); predict its image again") from error


def _jpeg(image: Image.Image, quality: int) -> str:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _packed(image: Image.Image) -> str:
    """Values row by row, deflated, as base64."""
    return base64.b64encode(zlib.compress(image.tobytes(), 9)).decode()
