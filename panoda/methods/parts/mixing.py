"""Mixing domains in image space: colour transfer, class-mix, pinholes warped onto the sphere.

Sources: colour transfer after Reinhard et al. 2001 (mean and deviation of each channel, in CIELAB, class by class in
RGB); class-mix after Olsson et al. 2021 and DACS (Tranheden et al. 2021). Images are float32 in 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panoda.labels import IGNORE_INDEX
from panoda.models.core.channels import per_channel
from panoda.models.core.colours import MIN_PIXELS, colour_statistics, recolour, rgb_to_lab
from panoda.system.shares import rows

_DISPLAY_GAMMA = 2.2


def colour_transfer(
    image: Tensor, valid: Tensor, reference: Tensor, reference_valid: Tensor, probability: float
) -> Tensor:
    """Give each image the CIELAB mean and deviation of a reference image, with a probability per image.

    Both are those of valid pixels; with fewer than ``MIN_PIXELS`` in either an image stays as it is.

    Args:
        image: (B, 3, H, W) in 0..1.
        valid: (B, H, W) bool, False in ignore bands and padding.
        reference: (R, 3, h, w) in 0..1; image b takes reference b mod R.
        reference_valid: (R, h, w) bool.
        probability: in 0..1.

    Returns:
        (B, 3, H, W) in 0..1.
    """
    if probability <= 0:
        return image
    index = torch.arange(image.shape[0], device=image.device) % reference.shape[0]
    found = colour_statistics(rgb_to_lab(reference), reference_valid)
    ref_mean, ref_std, ref_pixels = (s[index] for s in found)
    moved, pixels = recolour(image, valid, ref_mean, ref_std)
    chosen = _chosen(image, probability) & (pixels >= MIN_PIXELS) & (ref_pixels >= MIN_PIXELS)
    return torch.where(chosen, moved, image)


def class_colour_transfer(
    image: Tensor, label: Tensor, reference: Tensor, reference_label: Tensor, probability: float
) -> Tensor:
    """Give each class of a source image the RGB mean and deviation of that class in a target image.

    Classes with fewer than ``MIN_PIXELS`` pixels in either image, and ignored pixels, stay as they are.

    Args:
        image: (B, 3, H, W) in 0..1.
        label: (B, H, W) int64, 255 = ignored, as in ignore bands and padding.
        reference: (R, 3, h, w) in 0..1; image b takes reference b mod R.
        reference_label: (R, h, w) int64 (pseudo-)labels, likewise.
        probability: per image, in 0..1.

    Returns:
        (B, 3, H, W) in 0..1.
    """
    if probability <= 0:
        return image
    index = torch.arange(image.shape[0], device=image.device) % reference.shape[0]
    mean, std, pixels = _class_colours(image, label)
    ref_mean, ref_std, ref_pixels = (s[index] for s in _class_colours(reference, reference_label))
    both = (pixels >= MIN_PIXELS) & (ref_pixels >= MIN_PIXELS)
    both[:, IGNORE_INDEX] = False
    gain = torch.where(both[..., None], (ref_std / std).clamp(0.5, 2.0), 1.0)  # (B, 256, 3)
    shift = torch.where(both[..., None], ref_mean - gain * mean, 0.0)
    slot = label.flatten(1)[..., None].expand(-1, -1, 3)
    shape = (image.shape[0], *image.shape[2:], 3)
    gain_map = gain.gather(1, slot).view(shape).permute(0, 3, 1, 2)
    shift_map = shift.gather(1, slot).view(shape).permute(0, 3, 1, 2)
    chosen = _chosen(image, probability)
    return torch.where(chosen, (image * gain_map + shift_map).clamp(0, 1), image)


def _class_colours(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (B, 256, 3), deviation (B, 256, 3) and pixels (B, 256) of every label value."""
    slot = label.flatten(1)
    values = image.flatten(2).transpose(1, 2)  # (B, H*W, 3)
    wide = slot[..., None].expand(-1, -1, 3)
    zeros = values.new_zeros(values.shape[0], 256, 3)
    pixels = values.new_zeros(values.shape[0], 256).scatter_add_(1, slot, torch.ones_like(values[..., 0]))
    count = pixels.clamp(min=1)[..., None]
    mean = zeros.scatter_add(1, wide, values) / count
    square = zeros.scatter_add(1, wide, values.square()) / count
    return mean, (square - mean.square()).clamp(min=1e-6).sqrt(), pixels


def photometric(image: Tensor, valid: Tensor, *, jitter: float, exposure: float) -> Tensor:
    """Random exposure, tone curve, brightness, contrast and saturation, drawn for each image.

    The same ranges as ``panoda.data.loading.transforms.JointTransform``, on whole batches on any device.

    Args:
        image: (B, 3, H, W) in 0..1.
        valid: (B, H, W) bool; contrast turns about the mean grey of these pixels.
        jitter: factors are drawn from 1 - jitter to 1 + jitter.
        exposure: stops; the tone exponent is drawn from 2 to the power of half as much.
    """
    if jitter <= 0 and exposure <= 0:
        return image
    draw = rows(lambda n: torch.rand(5, n, 1, 1, 1, device=image.device), image.shape[0], dim=1)
    ev, curve, bright, contrast, saturation = draw * 2 - 1
    image = (image * 2 ** (exposure * ev / _DISPLAY_GAMMA)).clamp(0, 1)
    image = image.clamp(min=1e-4) ** (2 ** (exposure * curve / 2))
    image = (image * (1 + jitter * bright).clamp(min=0)).clamp(0, 1)
    pivot, _, _ = colour_statistics(_grey(image), valid)
    image = (pivot + (1 + jitter * contrast).clamp(min=0) * (image - pivot)).clamp(0, 1)
    grey = _grey(image)
    return (grey + (1 + jitter * saturation).clamp(min=0) * (image - grey)).clamp(0, 1)


def _chosen(image: Tensor, probability: float) -> Tensor:
    """(B, 1, 1, 1) bool: True with ``probability`` for each image."""
    return rows(lambda n: torch.rand(n, 1, 1, 1, device=image.device), image.shape[0]) < probability


def _grey(image: Tensor) -> Tensor:
    weight = per_channel((0.299, 0.587, 0.114), image).to(image.dtype)
    return (image * weight).sum(dim=1, keepdim=True)


def class_mix_mask(label: Tensor) -> Tensor:
    """Pick half of the classes of each label map.

    Args:
        label: (B, H, W) int64, 255 = ignored (never picked).

    Returns:
        (B, H, W) bool, True on pixels of the picked classes.
    """
    table = torch.zeros(label.shape[0], 256, dtype=torch.bool, device=label.device)
    table.scatter_(1, label.flatten(1), True)
    table[:, IGNORE_INDEX] = False
    drawn = rows(lambda n: torch.rand(n, 256, device=label.device), label.shape[0])
    order = drawn.masked_fill(~table, 2.0).argsort(dim=1).argsort(dim=1)
    picked = order < ((table.sum(dim=1, keepdim=True) + 1) // 2)
    return (picked & table).gather(1, label.flatten(1)).view_as(label)


def paste(
    image: Tensor, label: Tensor, onto_image: Tensor, onto_label: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste masked pixels; all maps have one size.

    Args:
        image: (B, 3, H, W) pasted.
        label: (B, H, W) its label.
        onto_image: (B, 3, H, W) background.
        onto_label: (B, H, W) its label.
        mask: (B, H, W) bool, True where ``image`` shows.
    """
    return torch.where(mask[:, None], image, onto_image), torch.where(mask, label, onto_label)


def place(
    image: Tensor, label: Tensor, size: tuple[int, int], turn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Put crops on an empty canvas, vertically centred, at a random column that may wrap around.

    Args:
        image: (B, 3, h, w).
        label: (B, h, w) int64.
        size: (H, W) of the canvas; parts of the crop outside it are cut off.
        turn: (B,) share of the circle by which each crop is moved, in 0..1, on the CPU; None = drawn.

    Returns:
        image (B, 3, H, W), zeros elsewhere, and label (B, H, W), 255 elsewhere.
    """
    height, width = size
    image, label = image[..., :width], label[..., :width]
    cut = max(0, label.shape[1] - height)
    if cut:
        image, label = image[:, :, cut // 2 :][:, :, :height], label[:, cut // 2 :][:, :height]
    top, w = (height - label.shape[1]) // 2, label.shape[2]
    canvas = image.new_zeros(image.shape[0], image.shape[1], height, width)
    ids = label.new_full((label.shape[0], height, width), IGNORE_INDEX)
    canvas[:, :, top : top + label.shape[1], :w] = image
    ids[:, top : top + label.shape[1], :w] = label
    turn = rows(torch.rand, image.shape[0]) if turn is None else turn
    shifts = (turn * width).long().clamp(max=width - 1).tolist()
    return (
        torch.stack([c.roll(s, dims=-1) for c, s in zip(canvas, shifts, strict=True)]),
        torch.stack([i.roll(s, dims=-1) for i, s in zip(ids, shifts, strict=True)]),
    )
