"""Colours of images as mean and deviation of their channels (Reinhard et al. 2001), and a model's own in CIELAB.

A model remembers the colours of the images it learned from. An image that takes them on looks to it more like
those, and what it says of both versions is often better than what it says of either.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from panoda.models.core.channels import per_channel

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of the channels of CIELAB (D65, 2 degrees): lightness in 0..100, a, b."""
MIN_PIXELS = 64
"""Pixels below which colours are not trusted."""
_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / np.array([[0.95047], [1.0], [1.08883]])
"""Linear RGB of sRGB to XYZ relative to white."""
_FROM_XYZ = np.linalg.inv(_TO_XYZ)


def rgb_to_lab(image: Tensor) -> Tensor:
    """CIELAB (B, 3, H, W), as scikit-image's ``rgb2lab``, of sRGB images in 0..1."""
    linear = torch.where(image > 0.04045, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4, image / 12.92)
    xyz = _times(_TO_XYZ, linear)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(dim=1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """SRGB images (B, 3, H, W) in 0..1 of CIELAB; what sRGB cannot show is cut off."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16) / 116
    root = torch.stack((y + a / 500, y, y - b / 200), dim=1)
    linear = _times(
        _FROM_XYZ, torch.where(root > 0.2068966, root.clamp(min=0) ** 3, (root - 16 / 116) / 7.787)
    )
    bright = 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, bright, 12.92 * linear).clamp(0, 1)


def _times(matrix: np.ndarray, image: Tensor) -> Tensor:
    """By numbers: a matrix on a GPU would have to be copied there, and half precision has too few colours."""
    channels = image.unbind(dim=1)
    rows = [
        [factor * channel for factor, channel in zip(row, channels, strict=True)] for row in matrix.tolist()
    ]
    return torch.stack([first + second + third for first, second, third in rows], dim=1)


def colour_statistics(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation (B, C, 1, 1) of images (B, C, H, W) over weighted pixels, and their number (B, 1, 1, 1).

    Args:
        image: Floating point.
        weight: (B, H, W) or (1, H, W): bool, or weights in 0..1.
    """
    weight = weight[:, None].to(image.dtype)
    pixels = weight.sum(dim=(2, 3), keepdim=True)
    mean = (image * weight).sum(dim=(2, 3), keepdim=True) / pixels.clamp(min=1)
    square = ((image - mean).square() * weight).sum(dim=(2, 3), keepdim=True)
    return mean, (square / (pixels - 1).clamp(min=1)).sqrt(), pixels


def recolour(image: Tensor, valid: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in 0..1 whose valid pixels have this mean and deviation (B or 1, 3, 1, 1) in CIELAB.

    Returns:
        The images, and the number (B, 1, 1, 1) of their valid pixels.
    """
    lab = rgb_to_lab(image)
    own_mean, own_std, pixels = colour_statistics(lab, valid)
    return lab_to_rgb((lab - own_mean) / own_std.clamp(min=0.1) * std + mean), pixels


def colours_of(model: nn.Module) -> Colours:
    """The colours that a model learned from.

    Raises:
        ValueError: it does not know them.
    """
    colours: Colours | None = getattr(model, "colours", None)
    if colours is None:
        raise ValueError(
            "source_colours needs a model that knows the colours it learned from, and this one does not (models "
            "trained or imported by panoda before 2026-11-29, and exported ones); set source_colours to 0, or "
            "train the source model again"
        )
    return colours


def in_source_colours(model: nn.Module, images: Tensor, valid: Tensor) -> Tensor:
    """Images with the colours that the model learned from; those with too few valid pixels stay as they are.

    Args:
        model: Has ``colours``.
        images: (B, 3, H, W), uint8, or floating point in 0..1.
        valid: (B, H, W) or (1, H, W) bool: pixels whose colours count, so not those of ignore bands and padding.

    Returns:
        As ``images``.

    Raises:
        ValueError: the model does not know them.
    """
    scaled = images if images.is_floating_point() else images.float() / 255
    mean, std = (per_channel(c, images)[None] for c in colours_of(model))
    moved, pixels = recolour(scaled, valid, mean, std)
    moved = torch.where(pixels >= MIN_PIXELS, moved, scaled)
    return moved if images.is_floating_point() else (moved * 255).round().to(images.dtype)
