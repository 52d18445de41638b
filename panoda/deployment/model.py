"""A model in use: ``panoda.load(MODEL).predict(IMAGE)``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from panoda.data.formats.gpano import FileFacts
from panoda.data.formats.images import is_video_name, pixels_of, read_rgb
from panoda.deployment.exported import is_exported, load_exported
from panoda.deployment.measures import pixel_shares, solid_angle_shares, strips, view_factors
from panoda.deployment.view import Asked, Geometry, View, pixels_per_radian, view_of, width_at
from panoda.geometry.pinhole import pinhole_rays
from panoda.geometry.views import Views
from panoda.inference.prediction import MIN_SIDE
from panoda.inference.sliding import Sliding
from panoda.inference.whole import predict_image
from panoda.labels import IGNORE_INDEX, LabelSpace
from panoda.models.core.checkpoint import ModelCard, load_model
from panoda.models.core.colours import colours_of
from panoda.models.core.errors import MissingCheckpointError
from panoda.models.weights.catalogue import SEGFORMERS
from panoda.system.context import resolve_device
from panoda.system.errors import DataError

DEFAULT_HEIGHT = 512
"""Working height when neither the caller nor the checkpoint says one."""
OVERLAY_SHARE = 0.5
WEIGHTS = Path("data/weights")


@dataclass(frozen=True)
class Perspective:
    """A perspective view of a labelled panorama, as a camera would take it.

    Attributes:
        azimuth_deg: Direction of its middle against the middle of the panorama, right positive.
        fov_deg: Field of view across and down.
        image: (s, s, 3) uint8 RGB; grey where the panorama shows nothing.
        label: (s, s) uint8 train ids; 255 where it shows nothing.
    """

    azimuth_deg: float
    elevation_deg: float
    fov_deg: float
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        label: (H, W) uint8 train ids of ``space``.
        confidence_255: (H, W) uint8, the confidence in 255ths.
        space: Class names and colours.
        view: What the image was taken for.
        working_size: Height and width in pixels at which the model saw it.
    """

    image: np.ndarray
    label: np.ndarray
    confidence_255: np.ndarray
    space: LabelSpace
    view: View
    working_size: tuple[int, int]

    @property
    def confidence(self) -> np.ndarray:
        """(H, W) float32, 0..1: the largest probability at every pixel."""
        return self.confidence_255.astype(np.float32) / 255

    def shares(self, by: Literal["pixel", "solid_angle"] = "pixel") -> dict[str, float]:
        """Class name -> its share of the image, 0..1.

        Args:
            by: pixel counts pixels; solid_angle counts what they cover of the sphere around the camera, where
                rows near the poles of a panorama and the corners of a photograph are small.

        Raises:
            ValueError: solid angles of a photograph whose lens nothing tells, or another ``by``.
        """
        if by not in ("pixel", "solid_angle"):
            raise ValueError(f"shares by {by!r}: expected 'pixel' or 'solid_angle'")
        if by == "pixel":
            return pixel_shares(self.label, self.space)
        found = solid_angle_shares(self.label, self.space, self.view)
        if found is None:
            raise ValueError("the lens is unknown, so no solid angles: say the field of view (fov_deg)")
        return found

    def view_factors(self) -> dict[str, float | None]:
        """View factors of ``sky`` and ``green``, 0..1; None where the image does not show all that is above."""
        return view_factors(self.label, self.space, self.view)

    def overlay(self) -> Image.Image:
        """The image with the classes' colours laid over it."""
        height, width = self.label.shape
        overlay = Image.new("RGB", (width, height))
        for strip in strips(height, width):
            rows = slice(strip.start, strip.stop)
            colours = Image.fromarray(self.space.colourise(self.label[rows]))
            overlay.paste(
                Image.blend(Image.fromarray(self.image[rows]), colours, OVERLAY_SHARE), (0, rows.start)
            )
        return overlay

    def views(self, views: Views | None = None) -> list[Perspective]:
        """Perspective views of a panorama with their labels, for tools that know no spheres.

        Args:
            views: Where they are; None = a ring of 90 degrees each. They are level when prediction levelled.

        Raises:
            ValueError: a photograph, which is such a view itself.
        """
        if self.view.projection == "pinhole":
            raise ValueError("a pinhole photograph is a perspective view itself")
        views = views or Views()
        height, width = self.label.shape
        area = self.view.area(height, width)
        side, fov = views.side(round(width * 2 * math.pi / area.fov_x)), math.radians(views.fov_deg)
        image = torch.from_numpy(self.image.transpose(2, 0, 1).copy())[None]
        label = torch.from_numpy(self.label)[None, None]
        found = []
        for azimuth, elevation in views.directions():
            rays = pinhole_rays(side, side, fov_x=fov, azimuth=azimuth, elevation=elevation) @ self.view.turn
            seen = area.sample(image, rays, fill=128.0)[0].permute(1, 2, 0).numpy()
            ids = area.sample(label, rays, mode="nearest", fill=IGNORE_INDEX)[0, 0].numpy()
            where = (math.degrees(azimuth), math.degrees(elevation))
            found.append(Perspective(*where, views.fov_deg, seen, ids))
        return found


@dataclass(frozen=True)
class Picture:
    """An image that is read: (H, W, 3) uint8 RGB upright, what it was taken for, and its file."""

    image: np.ndarray
    view: View
    path: Path | None


class Model:
    """A checkpoint or a file exported from one, ready to label images."""

    def __init__(self, net: Any, card: ModelCard, file: Path | None = None) -> None:
        """Use ``net`` (normalised images to logits) as ``card`` describes it; ``file`` is where it lies."""
        self.net, self.card, self.file = net, card, file

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
        fov_deg: float | None = None,
        lat_deg: tuple[float, float] | None = None,
        wrap: bool | None = None,
        upright: bool = False,
        pitch_deg: float | None = None,
        roll_deg: float | None = None,
        sliding: Sliding | None = None,
        views: Views | None = None,
        source_colours: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> Prediction:
        """Label an image of any size.

        Args:
            image: An image file, or an upright RGB image: (H, W, 3) uint8 or Pillow's.
            height: Working height in pixels; None = pixels of the angular size seen in training where the card
                (``params["prepared"]``) and the image tell it, else the height in training, else 512; never
                above the image's own.
            projection: What the image is; auto = as its metadata, its ends, the card and its shape say.
            fov_deg: Horizontal field of view in degrees.
            lat_deg: Latitudes of the upper and lower edge of a panorama in degrees.
            wrap: Whether it closes around the circle; None = full circles do.
            upright: Level the horizon by pitch and roll, predict, and turn the labels back.
            pitch_deg: With ``upright``: in place of the file's pitch.
            roll_deg: With ``upright``: in place of the file's roll.
            sliding: Window and stride of sliding windows at the working height; None = the whole image.
            views: Perspective views, for full circles only; None = none.
            source_colours: Weight of the image in the colours that the model learned from, beside 1 for the image
                as it is; helps models that were not adapted.
            dtype: Autocast type, or None.

        Raises:
            DataError: an image that cannot be read or is too small, or views of one that is no full circle.
            ValueError: angles that cannot be, or source_colours for a model that does not know them.
        """
        geometry = Geometry(projection, fov_deg, lat_deg, wrap, upright, pitch_deg, roll_deg)
        self.check_colours(source_colours)
        options: dict[str, Any] = {"sliding": sliding, "views": views, "dtype": dtype}
        return self.label(self.open(image, geometry), height=height, source_colours=source_colours, **options)

    def working_height(self, picture: Picture, height: int | None = None) -> int:
        """Height in pixels at which an image is predicted; ``height`` as in ``predict``."""
        high, wide = picture.image.shape[:2]
        resolution = pixels_per_radian(self._trained)
        across = None if resolution is None else width_at(picture.view, resolution)
        if height is None and across is not None:
            # Pixels of the angular size seen in training, whatever part of the sphere the image shows.
            height = round(across * high / wide)
        return max(MIN_SIDE, min(height or int(self._trained.get("height", DEFAULT_HEIGHT)), high))

    def check_colours(self, source_colours: float) -> None:
        """ValueError for a negative weight, or one for a model that does not know its colours."""
        if source_colours < 0:
            raise ValueError(f"source_colours is {source_colours:g}; expected a weight of 0 or more")
        if source_colours > 0:
            colours_of(self.net)

    def open(self, image: str | Path | np.ndarray | Image.Image, geometry: Geometry) -> Picture:
        """Read an image and say what it is taken for; arguments and errors as in ``predict``."""
        path = Path(image).expanduser() if isinstance(image, str | Path) else None
        if path is not None and is_video_name(path):
            raise DataError(f"{path}: a video; `panoda predict` labels its frames")
        image = read_rgb(path) if path is not None else image
        rgb = (
            pixels_of(image) if isinstance(image, Image.Image) and image.mode == "RGB" else np.asarray(image)
        )
        rgb = np.require(rgb, requirements=("C", "W"))  # torch takes no other
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise DataError(f"expected an RGB image (H, W, 3) of uint8, found {rgb.shape} of {rgb.dtype}")
        return self.take(rgb, geometry, path=path)

    def take(
        self,
        rgb: np.ndarray,
        geometry: Geometry,
        *,
        path: Path | None = None,
        facts: FileFacts | None = None,
    ) -> Picture:
        """Say what (H, W, 3) uint8 pixels are taken for, by the metadata of ``path`` or by ``facts``."""
        if min(rgb.shape[:2]) < MIN_SIDE:
            raise DataError(
                f"{path or 'image'}: too small: {rgb.shape[0]} x {rgb.shape[1]} pixels (height x width), "
                f"expected at least {MIN_SIDE} x {MIN_SIDE}"
            )
        shape = rgb.shape[:2]
        view = view_of(path, *shape, geometry=geometry, trained=self._trained, pixels=rgb, facts=facts)
        if getattr(self.net, "wraps", False) and not view.wrap:
            view = replace(view, notes=(*view.notes, "the model itself closes it around (model.wrap)"))
        return Picture(rgb, view, path)

    def label(
        self,
        picture: Picture,
        *,
        height: int | None = None,
        views: Views | None = None,
        **options: Any,
    ) -> Prediction:
        """Label an image that is read; options of ``predict_image``, the rest and errors as in ``predict``."""
        rgb, view = picture.image, picture.view
        if views is not None and not view.wrap:
            raise DataError(
                f"{picture.path or 'image'}: {view}: no full circle, which perspective views need"
            )
        working = self.working_height(picture, height)
        label, confidence = predict_image(
            self.net,
            torch.from_numpy(rgb).permute(2, 0, 1),
            height=working,
            wrap=view.wrap,
            views=views,
            area=view.area(*rgb.shape[:2]),
            level=None if view.level is None else tuple(map(math.radians, view.level)),  # type: ignore[arg-type]
            **options,
        )
        size = (working, round(rgb.shape[1] * working / rgb.shape[0]))
        return Prediction(rgb, label.numpy(), confidence.numpy(), self.space, view, size)

    @property
    def _trained(self) -> Mapping[str, Any]:
        """The images that it was trained on, as the card says."""
        return self.card.params.get("prepared") or {}


def label_png(label: np.ndarray, space: LabelSpace) -> Image.Image:
    """Train ids (H, W) uint8 as an image with the palette of their space."""
    image = Image.fromarray(label)
    image.putpalette(space.colour_table().tobytes())
    return image


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
        return Model(*load_exported(file), file)
    place = resolve_device(device) if isinstance(device, str) else device
    return Model(*load_model(file, device=place), file)


def find_model(path: str | Path) -> Path:
    """The file itself, or the one that ``panoda weights get`` made under that name.

    Raises:
        MissingCheckpointError: neither is there.
    """
    file, kept = Path(path).expanduser(), WEIGHTS / f"{path}.safetensors"
    if not file.exists() and kept.is_file():
        return kept
    if not file.exists() and str(path) in SEGFORMERS:
        raise MissingCheckpointError(f"{kept}: no such file; run `panoda weights get {path}`")
    if not file.exists():
        raise MissingCheckpointError(
            f"{path}: no such file, and no published weights of that name (`panoda weights list`); check the name"
        )
    return file
