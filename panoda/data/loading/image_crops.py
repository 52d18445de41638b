"""Random resized crops of images without labels, and pinhole views out of panoramas.

As in Inception (Szegedy et al., CVPR 2015) and MAE: area and aspect ratio of the crop are random, its size is not.
Deviation: the area counts from the largest crop of the wanted shape that fits the image, and ratios from that
shape, so that panoramas are cut as photographs are; for square images and crops both are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812

from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import Sample
from panoda.data.loading.transforms import AugmentedSample, places, window
from panoda.geometry.pinhole import erp_to_pinhole

_RATIO = math.log(4 / 3)
_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class ImageCrop:
    """A crop of one size out of any image, perhaps mirrored.

    Attributes:
        images: What the samples are of; it knows which are panoramas, and their bands.
        height: Of the crops in pixels.
        width: Of the crops in pixels.
        scale: Range of the area, as a share of the largest crop of that shape.
        hflip: Probability of mirroring left-right.
        yaw_roll: Crops of full panoramas start at any column and go on across the seam.
        views: Share of the crops of full panoramas that are pinhole views.
        view_fov_deg: Range of their horizontal field of view in degrees.
    """

    images: Mixture
    height: int
    width: int
    scale: tuple[float, float] = (0.2, 1.0)
    hflip: float = 0.5
    yaw_roll: bool = True
    views: float = 0.0
    view_fov_deg: tuple[float, float] = (60.0, 100.0)

    def __call__(self, sample: Sample, generator: torch.Generator, *, full_circle: bool) -> AugmentedSample:
        """Cut one sample.

        Returns:
            The sample without label; ``rows`` are nan where the image is no panorama or the crop a view.
        """
        # One draw for everything, so that switching one part off does not change the others.
        u_view, u_fov, u_azimuth, u_up, u_top, u_left, u_flip, *u_window = torch.rand(
            7 + 2 * _TRIES, generator=generator
        ).tolist()
        height, width = sample["image"].shape[1:]
        if full_circle and u_view < self.views:
            image = self._view(sample, u_fov, u_azimuth, u_up)
            rows, columns = (torch.full((side,), math.nan) for side in (self.height, self.width))
        else:
            high, wide = self._size(height, width, u_window)
            top, left = int(u_top * (height - high + 1)), int(u_left * (width - wide + 1))
            if full_circle and self.yaw_roll:
                left = int(u_left * width)
            image = self._cut(sample["image"], top, high, left, wide)
            rows, columns = places(top, high, self.height), places(left, wide, self.width)
            if self.images.part_of(sample["index"]).projection != "erp":
                rows = torch.full_like(rows, math.nan)
        if u_flip < self.hflip:
            image, columns = F.horizontal_flip(image), columns.flip(0)
        return AugmentedSample(
            image=image,
            label=sample["label"][:0, :0],
            valid=sample["valid"][:0, :0],
            id=sample["id"],
            index=sample["index"],
            rows=rows,
            columns=columns,
        )

    def centre(self, image: Tensor) -> Tensor:
        """The largest crop out of the middle of (3, H, W), the same every time."""
        height, width = image.shape[1:]
        high, wide = self._largest(height, width)
        return self._cut(image, (height - high) // 2, high, (width - wide) // 2, wide)

    def _cut(self, image: Tensor, top: int, high: int, left: int, wide: int) -> Tensor:
        cut = window(tv_tensors.Image(image), top, high, left, wide)
        size = [self.height, self.width]
        resized = F.resize(cut, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return resized.as_subclass(Tensor)

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        factor = min(height / self.height, width / self.width)
        return round(self.height * factor), round(self.width * factor)

    def _size(self, height: int, width: int, u: list[float]) -> tuple[int, int]:
        """Height and width of what is cut out; the largest one after ten that did not fit."""
        high, wide = self._largest(height, width)
        for u_area, u_ratio in zip(u[::2], u[1::2], strict=True):
            area = self.scale[0] + u_area * (self.scale[1] - self.scale[0])
            ratio = math.exp((2 * u_ratio - 1) * _RATIO)
            size = round(high * math.sqrt(area / ratio)), round(wide * math.sqrt(area * ratio))
            if 0 < size[0] <= height and 0 < size[1] <= width:
                return size
        return high, wide

    def _view(self, sample: Sample, u_fov: float, u_azimuth: float, u_up: float) -> Tensor:
        """A pinhole view that lies within the panorama's band."""
        top, bottom = self.images.part_of(sample["index"]).band
        shape = self.height / self.width
        fov = math.radians(self.view_fov_deg[0] + u_fov * (self.view_fov_deg[1] - self.view_fov_deg[0]))
        upright = min(2 * math.atan(math.tan(fov / 2) * shape), top - bottom)
        view = erp_to_pinhole(
            sample["image"][None],
            height=self.height,
            width=self.width,
            fov_x=2 * math.atan(math.tan(upright / 2) / shape),
            azimuth=2 * math.pi * u_azimuth,
            elevation=bottom + upright / 2 + u_up * (top - bottom - upright),
            lat_top=top,
            lat_bottom=bottom,
        )
        return view[0]
