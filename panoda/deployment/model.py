"""A model in use: ``panoda.load(FILE).predict(IMAGE)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from panoda.data.formats.images import read_rgb
from panoda.deployment.exported import is_exported, load_exported
from panoda.deployment.view import Asked, View, pixels_per_radian, view_of, width_at
from panoda.geometry.views import Views
from panoda.inference.prediction import MIN_SIDE, predict_image
from panoda.inference.sliding import Sliding
from panoda.labels import LabelSpace
from panoda.models.core.checkpoint import ModelCard, load_model
from panoda.models.core.errors import MissingCheckpointError
from panoda.models.weights.catalogue import SEGFORMERS
from panoda.system.context import resolve_device
from panoda.system.errors import DataError

DEFAULT_HEIGHT = 512
"""Working height when neither the caller nor the checkpoint says one."""
OVERLAY_SHARE = 0.5
WEIGHTS = Path("data/weights")


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        label: (H, W) uint8 train ids of ``space``.
        space: Class names and colours.
        view: What the image was taken for.
    """

    image: np.ndarray
    label: np.ndarray
    space: LabelSpace
    view: View

    def shares(self) -> dict[str, float]:
        """Class name -> its share of the pixels, 0..1."""
        counts = np.bincount(self.label.ravel(), minlength=self.space.num_classes)
        return {name: counts[k] / self.label.size for k, name in enumerate(self.space.names)}

    def overlay(self) -> Image.Image:
        """The image with the classes' colours laid over it."""
        colours = Image.fromarray(self.space.colourise(self.label))
        return Image.blend(Image.fromarray(self.image), colours, OVERLAY_SHARE)


class Model:
    """A checkpoint or a file exported from one, ready to label images."""

    def __init__(self, net: Any, card: ModelCard) -> None:
        """Use ``net``, which takes batches of images, as ``card`` describes it."""
        self._net, self.card = net, card

    @property
    def space(self) -> LabelSpace:
        """Class names and colours of its labels."""
        return self.card.space

    def predict(
        self,
        image: str | Path | np.ndarray | Image.Image,
        *,
        height: int | None = None,
        projection: Asked = "auto",
        wrap: bool | None = None,
        sliding: Sliding | None = None,
        views: Views | None = None,
        dtype: torch.dtype | None = None,
    ) -> Prediction:
        """Label an image of any size.

        Args:
            image: An image file, or an upright RGB image: (H, W, 3) uint8 or Pillow's.
            height: Working height in pixels; None = pixels of the angular size seen in training where the card
                (``params["prepared"]``) and the image tell it, else the height in training, else 512; never
                above the image's own.
            projection: What the image is; auto = as its metadata, the card and its shape say.
            wrap: Whether it closes around the circle; None = full circles do.
            sliding: Window and stride of sliding windows at the working height; None = the whole image.
            views: Perspective views, for full circles only; None = none.
            dtype: Autocast type, or None.

        Raises:
            DataError: an image that cannot be read or is too small, or views of one that is no full circle.
        """
        path = Path(image).expanduser() if isinstance(image, str | Path) else None
        rgb = np.asarray(read_rgb(path) if path is not None else image)
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise DataError(f"expected an RGB image (H, W, 3) of uint8, found {rgb.shape} of {rgb.dtype}")
        if min(rgb.shape[:2]) < MIN_SIDE:
            raise DataError(
                f"{path or 'image'}: too small: {rgb.shape[0]} x {rgb.shape[1]} pixels (height x width), "
                f"expected at least {MIN_SIDE} x {MIN_SIDE}"
            )
        trained: Mapping[str, Any] = self.card.params.get("prepared") or {}
        view = view_of(path, *rgb.shape[:2], projection=projection, wrap=wrap, trained=trained)
        if getattr(self._net, "wraps", False) and not view.wrap:
            view = replace(view, notes=(*view.notes, "the model itself closes it around (model.wrap)"))
        if views is not None and not view.wrap:
            raise DataError(f"{path or 'image'}: {view}: no full circle, which perspective views need")
        label = predict_image(
            self._net,
            torch.from_numpy(rgb.transpose(2, 0, 1).copy()),
            height=_working_height(trained, rgb.shape, asked=height, view=view),
            wrap=view.wrap,
            sliding=sliding,
            views=views,
            band=view.band(*rgb.shape[:2]),
            dtype=dtype,
        ).numpy()
        return Prediction(rgb, label, self.space, view)


def load(path: str | Path, *, device: str | torch.device = "auto") -> Model:
    """The model in a ``model.safetensors``, or in a file exported from one (which runs on the CPU).

    Args:
        path: The file, or a name below data/weights such as ``segformer-b1-cityscapes``.
        device: auto (a GPU when there is one), cpu, cuda, cuda:N.

    Raises:
        ValueError: no such file, or no model in it.
    """
    file = find_model(path)
    if is_exported(file):
        return Model(*load_exported(file))
    return Model(*load_model(file, device=resolve_device(device) if isinstance(device, str) else device))


def find_model(path: str | Path) -> Path:
    """The file itself, or the one that ``panoda weights get`` made under that name."""
    file, kept = Path(path).expanduser(), WEIGHTS / f"{path}.safetensors"
    if not file.exists() and kept.is_file():
        return kept
    if not file.exists() and str(path) in SEGFORMERS:
        raise MissingCheckpointError(f"{kept}: no such file; run `panoda weights get {path}`")
    return file


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
