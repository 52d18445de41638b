"""Label panoramas from files: palette PNGs at the original size, overlays and class shares.

A file that cannot be read is skipped and named in the result; everything else is still predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from panoda.data.formats.images import IMAGE_SUFFIXES, is_image_name, read_rgb
from panoda.deployment.exported import is_exported, load_exported
from panoda.deployment.view import Asked, View, pixels_per_radian, view_of, width_at
from panoda.inference.prediction import MIN_SIDE, predict_image
from panoda.inference.sliding import Sliding
from panoda.labels import LabelSpace
from panoda.models.core.checkpoint import load_model
from panoda.system.errors import DataError
from panoda.system.files import explain_disk_full, staged_file
from panoda.system.progress import track

DEFAULT_HEIGHT = 512
"""Working height when neither the caller nor the checkpoint says one."""
OVERLAY_SHARE = 0.5
ASSUMED = ("projection", "fov_x_deg", "wrapped", "taken_for")
"""Columns of class_shares.csv: what the image was taken for."""


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
        images: Image files of any size.
        out: Result folder; files of other images that lie there stay.
        height: Working height in pixels; None = pixels of the angular size seen in training where the
            checkpoint's card (``params["prepared"]``) and the image tell it, else the height in training,
            else 512; never above the image's own.
        projection: What the images are; auto = as their metadata, the card and their shape say.
        wrap: Whether they close around the circle; None = full circles do.
        sliding: Window and stride of sliding windows at the working height; None = whole images.
        device: Where to compute.
        dtype: Autocast type, or None.
        progress: Show a progress bar.
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
    loaded = load_exported(checkpoint) if is_exported(checkpoint) else load_model(checkpoint, device=device)
    model, card = loaded
    space = card.space
    trained: dict[str, Any] = card.params.get("prepared") or {}
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
                rgb = _read(path)
            except DataError as error:
                failures.append((path, str(error)))
                continue
            view = view_of(path, *rgb.shape[:2], projection=projection, wrap=wrap, trained=trained)
            if getattr(model, "wraps", False) and not view.wrap:
                view = replace(view, notes=(*view.notes, "the model itself closes it around (model.wrap)"))
            if say is not None:
                say(f"{path}: {view}")
            label = predict_image(
                model,
                torch.from_numpy(rgb.transpose(2, 0, 1).copy()),
                height=_working_height(trained, rgb.shape, asked=height, view=view),
                wrap=view.wrap,
                sliding=sliding,
                dtype=dtype,
            ).numpy()
            written.append(_write(out, names[path], rgb, label, space))
            rows.append({"image": str(path), "label": names[path], **_assumed(view), **_shares(label, space)})
        shares = out / "class_shares.csv"
        with staged_file(shares) as aside:
            columns = ["image", "label", *ASSUMED, *space.names]
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


def _read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    rgb = np.asarray(read_rgb(path))
    if min(rgb.shape[:2]) < MIN_SIDE:
        raise DataError(
            f"{path}: too small: {rgb.shape[0]} x {rgb.shape[1]} pixels (height x width), "
            f"expected at least {MIN_SIDE} x {MIN_SIDE}"
        )
    return rgb


def _working_height(
    trained: Mapping[str, Any], shape: tuple[int, ...], *, asked: int | None, view: View
) -> int:
    height, width = shape[:2]
    wanted = asked
    if wanted is None:
        resolution = pixels_per_radian(trained)
        across = None if resolution is None else width_at(view, resolution)
        if across is not None:
            # Pixels of the angular size seen in training, whatever part of the sphere the image shows.
            wanted = round(across * height / width)
        else:
            wanted = int(trained.get("height", DEFAULT_HEIGHT))
    return max(MIN_SIDE, min(wanted, height))


def _assumed(view: View) -> dict[str, object]:
    return dict(zip(ASSUMED, (view.projection, view.fov_x_deg, view.wrap, str(view)), strict=True))


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


def _write(out: Path, name: str, rgb: np.ndarray, label: np.ndarray, space: LabelSpace) -> Path:
    path = out / "labels" / f"{name}.png"
    image = Image.fromarray(label)
    image.putpalette(space.colour_table().tobytes())
    with staged_file(path) as aside:
        image.save(aside, format="PNG")
    with staged_file(out / "overlays" / f"{name}.jpg") as aside:
        overlay = Image.blend(Image.fromarray(rgb), Image.fromarray(space.colourise(label)), OVERLAY_SHARE)
        overlay.save(aside, format="JPEG", quality=90)
    return path


def _shares(label: np.ndarray, space: LabelSpace) -> dict[str, float]:
    counts = np.bincount(label.ravel(), minlength=space.num_classes)
    return {name: counts[i] / label.size for i, name in enumerate(space.names)}
