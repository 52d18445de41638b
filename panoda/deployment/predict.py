"""Label panoramas from files: palette PNGs at the original size, overlays and class shares.

A file that cannot be read is skipped and named in the result; everything else is still predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from panoda.data.formats.images import IMAGE_SUFFIXES, is_image_name
from panoda.deployment.model import Prediction, load
from panoda.deployment.view import Asked
from panoda.geometry.views import Views
from panoda.inference.prediction import MIN_SIDE
from panoda.inference.sliding import Sliding
from panoda.system.errors import DataError
from panoda.system.files import explain_disk_full, staged_file
from panoda.system.progress import track

ASSUMED = ("projection", "fov_x_deg", "wrapped", "taken_for")
"""Columns of class_shares.csv: what the image was taken for."""

HOW_ELSE = "; if it is a photograph: --projection pinhole, if its ends do not meet: --no-wrap"
"""Said of images that are taken for full circles by their shape alone."""


@dataclass(frozen=True)
class PredictResult:
    """What ``predict_files`` did.

    Attributes:
        labels: Written label files, in the order of the images that could be read.
        shares: Table of class shares, one row per image.
        failures: (image, reason) of every image that was skipped; empty when all went well.
    """

    labels: list[Path]
    shares: Path
    failures: list[tuple[Path, str]]


def predict_files(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    height: int | None = None,
    projection: Asked = "auto",
    wrap: bool | None = None,
    sliding: Sliding | None = None,
    views: Views | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> PredictResult:
    """Write ``labels/*.png``, ``overlays/*.jpg`` and ``class_shares.csv`` into ``out``.

    Label PNGs hold train ids with the palette of the label space. Shares are shares of pixels; beside them
    stands what each image was taken for (``panoda.deployment.view``).

    Args:
        checkpoint: A ``model.safetensors``, or a model exported from one (which runs on the CPU).
        out: Result folder; files of other images that lie there stay.
        height: Working height in pixels; None = pixels of the angular size seen in training where the
            checkpoint's card (``params["prepared"]``) and the image tell it, else the height in training,
            else 512; never above the image's own.
        projection: What the images are; auto = as their metadata, the card and their shape say.
        wrap: Whether they close around the circle; None = full circles do.
        sliding: Window and stride of sliding windows at the working height; None = whole images.
        views: Perspective views, for full circles only; None = none.
        say: Told in one line what each image was taken for.

    Raises:
        ValueError: no images, wrap for pinhole images, or arguments that are not image files.
        OSError: disk full.
    """
    images = list(dict.fromkeys(images))
    _check_arguments(images)
    if wrap and projection == "pinhole":
        raise ValueError("pinhole images are no circles: leave out --wrap, or give --projection erp")
    if height is not None and height < MIN_SIDE:
        raise ValueError(f"height must be at least {MIN_SIDE} pixels, found {height}")
    model = load(checkpoint, device=device)
    names = _output_names(images)
    written: list[Path] = []
    rows: list[dict[str, object]] = []
    failures: list[tuple[Path, str]] = []
    with explain_disk_full(out):
        for folder in (out / "labels", out / "overlays"):
            # An out that cannot be written is told before the first prediction.
            folder.mkdir(parents=True, exist_ok=True)
        for path in track(images, "predicting", enabled=progress):
            try:
                found = model.predict(
                    path,
                    height=height,
                    projection=projection,
                    wrap=wrap,
                    sliding=sliding,
                    views=views,
                    dtype=dtype,
                )
            except DataError as error:
                failures.append((path, str(error)))
                continue
            if say is not None:
                say(f"{path}: {found.view}{HOW_ELSE if found.view.guessed and found.view.wrap else ''}")
            written.append(_write(out, names[path], found))
            view = found.view
            assumed = dict(zip(ASSUMED, (view.projection, view.fov_x_deg, view.wrap, str(view)), strict=True))
            rows.append({"image": str(path), "label": names[path], **assumed, **found.shares()})
        shares = out / "class_shares.csv"
        with staged_file(shares) as aside:
            columns = ["image", "label", *ASSUMED, *model.space.names]
            pd.DataFrame(rows, columns=columns).to_csv(aside, index=False, float_format="%.6f")
    return PredictResult(labels=written, shares=shares, failures=failures)


def _check_arguments(images: Sequence[Path]) -> None:
    """Refuse what cannot be meant as an image, before any work."""
    if not images:
        raise ValueError("no images given; name at least one image file")
    problems = []
    for path in images:
        if not path.is_file():
            problems.append(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
        elif not is_image_name(path):
            problems.append(f"{path}: not the name of an image")
    if problems:
        raise ValueError(
            "not image files:\n  "
            + "\n  ".join(problems)
            + f"\nexpected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}; "
            "name the files of a folder with folder/*"
        )


def _output_names(images: Sequence[Path]) -> dict[Path, str]:
    """A unique name without suffix per image; a number is added where names repeat."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in images:
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name)
        names[path] = name
    return names


def _write(out: Path, name: str, found: Prediction) -> Path:
    path = out / "labels" / f"{name}.png"
    image = Image.fromarray(found.label)
    image.putpalette(found.space.colour_table().tobytes())
    with staged_file(path) as aside:
        image.save(aside, format="PNG")
    with staged_file(out / "overlays" / f"{name}.jpg") as aside:
        found.overlay().save(aside, format="JPEG", quality=90)
    return path
