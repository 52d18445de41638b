"""Colours of images as mean and deviation of their channels (Reinhard et al. 2001), and a model's own.

A model remembers the colours of the images it learned from. An image that takes them on looks to it more like
those, and what it says of both versions is often better than what it says of either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of the channels, RGB in 0..1."""
MIN_PIXELS = 64
"""Pixels below which colours are not trusted."""


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
    own_mean, own_std = (torch.tensor(c, device=images.device).view(1, 3, 1, 1) for c in colours_of(model))
    scaled = images if images.is_floating_point() else images.float() / 255
    mean, std, pixels = colour_statistics(scaled, valid)
    moved = ((scaled - mean) / std.clamp(min=1e-3) * own_std + own_mean).clamp(0, 1)
    moved = torch.where(pixels >= MIN_PIXELS, moved, scaled)
    return moved if images.is_floating_point() else (moved * 255).round().to(images.dtype)
