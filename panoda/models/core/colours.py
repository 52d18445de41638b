"""Colours of images as mean and deviation of their channels (Reinhard et al. 2001), and a model's own in CIELAB.

A model remembers the colours of the images it learned from. An image that takes them on looks to it more like
those, and what it says of both versions is often better than what it says of either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of the channels of CIELAB (D65, 2 degrees): lightness in 0..100, a, b."""
MIN_PIXELS = 64
"""Pixels below which colours are not trusted."""
_WHITE = (0.95047, 1.0, 1.08883)
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear RGB of sRGB to XYZ; white is ``_WHITE``."""


def rgb_to_lab(image: Tensor) -> Tensor:
    """CIELAB (B, 3, H, W), as scikit-image's ``rgb2lab``, of sRGB images in 0..1."""
    linear = torch.where(image > 0.04045, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4, image / 12.92)
    x, y, z = _times(_matrix(image), linear).unbind(dim=1)
    x, y, z = (
        torch.where(t > 0.008856, t.clamp(min=1e-6) ** (1 / 3), 7.787 * t + 16 / 116) for t in (x, y, z)
    )
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """SRGB images (B, 3, H, W) in 0..1 of CIELAB; what sRGB cannot show is cut off."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16) / 116
    root = torch.stack((y + a / 500, y, y - b / 200), dim=1)
    xyz = torch.where(root > 0.2068966, root.clamp(min=0) ** 3, (root - 16 / 116) / 7.787)
    linear = _times(torch.linalg.inv(_matrix(lab)), xyz)
    bright = 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, bright, 12.92 * linear).clamp(0, 1)


def _matrix(like: Tensor) -> Tensor:
    """Linear RGB to XYZ relative to white."""
    return like.new_tensor(_XYZ) / like.new_tensor(_WHITE)[:, None]


def _times(matrix: Tensor, image: Tensor) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):  # half precision has too few colours
        return torch.einsum("ij,bjhw->bihw", matrix, image)


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
    mean, std = (torch.tensor(c, device=images.device).view(1, 3, 1, 1) for c in colours_of(model))
    moved, pixels = recolour(scaled, valid, mean, std)
    moved = torch.where(pixels >= MIN_PIXELS, moved, scaled)
    return moved if images.is_floating_point() else (moved * 255).round().to(images.dtype)
