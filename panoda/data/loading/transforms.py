"""Joint augmentation of image, label and valid mask; normalisation of images.

Kernels come from torchvision's transforms v2. All random numbers come from the generator passed in, so
a sample depends on its seed alone. Labels use nearest-exact: the nearest mode that v2 applies to masks
takes the corner of a pixel and would shift labels by half a pixel against the bilinear image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812

from panoda.data.loading.prepared import Sample
from panoda.labels import IGNORE_INDEX
from panoda.models.core.channels import IMAGENET_MEAN, IMAGENET_STD, per_channel

_FILL = tuple(round(255 * m) for m in IMAGENET_MEAN)
_DISPLAY_GAMMA = 2.2


class AugmentedSample(Sample):
    """A ``Sample`` that knows which part of its image it shows.

    Attributes:
        rows: (H,) float32 row of the whole image that each row shows, pixel centres at +0.5; nan in padding.
        columns: (W,) float32, the same for columns. Past the seam of a panorama they go on beyond its width;
            in a mirrored sample they fall.
    """

    rows: Tensor
    columns: Tensor


def normalise(
    image: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Give images mean and deviation, ImageNet's unless others are given.

    Args:
        image: (..., 3, H, W), uint8 in 0..255 or floating point in 0..1.
        mean: Of each channel, in 0..1.
        std: Of each channel, in 0..1.

    Returns:
        float32 of the same shape on the same device.
    """
    scaled = image if image.is_floating_point() else image.float() / 255
    return (scaled - per_channel(mean, image)) / per_channel(std, image)


@dataclass(frozen=True, kw_only=True)
class JointTransform:
    """Random scale, crop, mirror and yaw roll of everything; colour jitter and exposure of the image.

    Panoramas of a full circle wrap around: crops may cross the seam. What lies outside the image is
    filled with the mean colour, label 255 and valid False.

    Attributes:
        crop_height: Output height in pixels; 0 = the sample's own.
        crop_width: Output width in pixels; 0 = the sample's own.
        scale: Range of the uniform resize factor before cropping.
        hflip: Probability of mirroring left-right.
        yaw_roll: Roll by a random yaw; other than full-circle samples stay as they are.
        jitter: Brightness, contrast and saturation factors are drawn from 1 - jitter to 1 + jitter.
        exposure: Exposure (in linear light) is drawn from -exposure to +exposure stops, and the exponent of
            the tone curve from 2 to the power of half as much.
    """

    crop_height: int = 0
    crop_width: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.5
    yaw_roll: bool = False
    jitter: float = 0.0
    exposure: float = 0.0

    def __call__(self, sample: Sample, generator: torch.Generator, *, full_circle: bool) -> AugmentedSample:
        """Transform one sample.

        Returns:
            A new sample, its maps (crop_height, crop_width), that says what it shows.
        """
        # One draw for everything, so that switching one part off does not change the others.
        u_scale, u_top, u_left, u_flip, *u_colour = torch.rand(9, generator=generator).tolist()
        _, height, width = sample["image"].shape
        crop_h, crop_w = self.crop_height or height, self.crop_width or width
        factor = self.scale[0] + u_scale * (self.scale[1] - self.scale[0])
        top, src_h, out_h, pad_top = _axis(height, crop_h, factor, u_top)
        left, src_w, out_w, pad_left = _axis(width, crop_w, factor, u_left)
        if full_circle and (src_w < width or self.yaw_roll):
            left = int(u_left * width)

        maps = tv_tensors.Image(torch.stack([sample["label"], sample["valid"].to(torch.uint8)]))
        image = tv_tensors.Image(sample["image"])
        image, maps = window(image, top, src_h, left, src_w), window(maps, top, src_h, left, src_w)
        if (src_h, src_w) != (out_h, out_w):
            image = F.resize(image, [out_h, out_w], interpolation=InterpolationMode.BILINEAR, antialias=True)
            maps = F.resize(maps, [out_h, out_w], interpolation=InterpolationMode.NEAREST_EXACT)
        rows, columns = places(top, src_h, out_h), places(left, src_w, out_w)
        if u_flip < self.hflip:
            image, maps, columns = F.horizontal_flip(image), F.horizontal_flip(maps), columns.flip(0)
        maps = maps.as_subclass(Tensor)
        image = self._recolour(image.as_subclass(Tensor), maps[1].bool(), u_colour)
        place = (pad_top, pad_left, crop_h, crop_w)
        label, valid = _pad(maps, place, (IGNORE_INDEX, 0))
        return AugmentedSample(
            image=_pad(image, place, _FILL),
            label=label,
            valid=valid.bool(),
            id=sample["id"],
            index=sample["index"],
            rows=_pad(rows.view(1, -1, 1), (pad_top, 0, crop_h, 1), (math.nan,)).flatten(),
            columns=_pad(columns.view(1, 1, -1), (0, pad_left, 1, crop_w), (math.nan,)).flatten(),
        )

    def _recolour(self, image: Tensor, valid: Tensor, u: list[float]) -> Tensor:
        """(3, H, W) uint8 -> the same; tone changes run through one 256-entry table.

        Contrast turns about the mean grey of the valid pixels.
        """
        if self.jitter == 0 and self.exposure == 0:
            return image
        ev, curve, bright, contrast, saturation = (2 * value - 1 for value in u)
        tone = np.linspace(0.0, 1.0, 256)
        # The mean grey from integer sums: it must not depend on the number of threads.
        counted = valid if valid.any() else torch.ones_like(valid)
        sums = (image * counted).sum(dim=(1, 2)).tolist()
        grey = sum(w * s for w, s in zip((0.299, 0.587, 0.114), sums, strict=True))
        mean = np.array(grey / (255 * int(counted.sum())))

        def expose(value: np.ndarray) -> np.ndarray:
            value = np.clip(value * 2.0 ** (self.exposure * ev / _DISPLAY_GAMMA), 0, 1)
            value = value ** (2.0 ** (self.exposure * curve / 2))
            return np.clip(value * max(0.0, 1 + self.jitter * bright), 0, 1)

        tone, pivot = expose(tone), expose(mean)
        tone = np.clip(pivot + max(0.0, 1 + self.jitter * contrast) * (tone - pivot), 0, 1)
        table = np.round(tone * 255).astype(np.uint8)
        # bytes.translate takes a third of the time that indexing with an array does.
        shifted = bytearray(image.numpy().tobytes()).translate(table.tobytes())
        image = torch.frombuffer(shifted, dtype=torch.uint8).view(image.shape)
        if self.jitter == 0:
            return image
        return F.adjust_saturation(image, max(0.0, 1 + self.jitter * saturation))


def _axis(size: int, crop: int, factor: float, u: float) -> tuple[int, int, int, int]:
    """Source start and length, output length, and padding before it, along one axis."""
    length = max(1, round(crop / factor))
    if length <= size:
        return int(u * (size - length + 1)), length, crop, 0
    out = min(crop, max(1, round(size * factor)))
    return 0, size, out, int(u * (crop - out + 1))


def window(x: Tensor, top: int, height: int, left: int, width: int) -> Tensor:
    """Rows top.. and columns left.. of (C, H, W); columns continue at 0 past the right edge."""
    rows = x[:, top : top + height]
    over = left + width - x.shape[-1]
    if over <= 0:
        cut = rows[..., left : left + width]
    else:
        cut = torch.cat([rows[..., left:], rows[..., :over]], dim=-1)
    return tv_tensors.wrap(cut, like=x)


def places(start: int, length: int, out: int) -> Tensor:
    """(out,) where the centres of ``out`` pixels lie that ``length`` pixels from ``start`` on became."""
    return start + (torch.arange(out) + 0.5) * (length / out)


def _pad(x: Tensor, place: tuple[int, int, int, int], fill: Sequence[float]) -> Tensor:
    """(C, h, w) at (top, left) of a (C, height, width) canvas with one fill value per channel."""
    top, left, height, width = place
    if x.shape[1:] == (height, width):
        return x
    canvas = torch.tensor(fill, dtype=x.dtype).view(-1, 1, 1).repeat(1, height, width)
    canvas[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    return canvas
