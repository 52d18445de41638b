"""Labels and confidence of one whole image of any size.

Convention: as in ``panoda.inference.prediction``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from panoda.geometry.area import WHOLE, Area, over_level
from panoda.geometry.views import Views
from panoda.inference.prediction import (
    MIN_SIDE,
    VIEW_FILL,
    Band,
    closes_itself,
    margin_of,
    mix_colours,
    mix_views,
    neighbours,
    predict_logits,
    resize_image,
    resize_linear,
)
from panoda.inference.sliding import Sliding

WINDOW = 2048
"""Widest piece in pixels that the model sees at once, margins not counted."""
_STRIP_PIXELS = 2**18
_LEAST = 1e-30


def predict_image(
    model: nn.Module,
    image: Tensor,
    *,
    height: int,
    wrap: bool,
    dtype: torch.dtype | None = None,
    window: int = WINDOW,
    sliding: Sliding | None = None,
    views: Views | None = None,
    area: Area = WHOLE,
    level: tuple[float, float] | None = None,
    source_colours: float = 0.0,
    smooth: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Label one whole image of any size.

    The image is brought to a working height; if that makes it wider than ``window``, overlapping pieces are
    predicted one after the other, unless ``sliding`` takes smaller ones. The image is reduced, and logits are
    enlarged to its size, strip by strip, so memory depends on the working size and not on the size of the
    image (besides image and result themselves).

    Args:
        model: As in ``predict_logits``.
        image: (3, H, W) uint8, on any device; any order in memory.
        height: Working height in pixels; the working width keeps the aspect, in steps of 4 pixels.
        wrap: The width is a full circle; dtype, sliding and views as in ``predict_logits``, too.
        window: Widest piece in pixels.
        area: What a panorama shows; for views and levelling only.
        level: Pitch and roll of the camera in radians: the model sees the panorama with a level horizon.
        source_colours: As in ``predict_logits``; of full circles the colours up to 45 degrees from the horizon
            count, where pinhole cameras look.
        smooth: Given the logits (1, K, h, w) at the working size, returns those that count, such as ``Smoothing``.

    Returns:
        label (H, W) uint8 train ids, and confidence (H, W) uint8 in 255ths: the largest probability at the
        working size, enlarged. On the CPU.
    """
    device = next((p.device for p in model.parameters()), image.device)
    full = (image.shape[1], image.shape[2])
    width = max(MIN_SIDE, 4 * round(full[1] * height / full[0] / 4))
    work = _at_working_size(image, (height, width), wrap=wrap).to(device)

    def logits_of(images: Tensor, area: Area, wrap: bool) -> Tensor:
        band = (area.lat_top, area.lat_bottom)

        def whole(images: Tensor) -> Tensor:
            pieces = _pieces(model, images, wrap=wrap, window=window, dtype=dtype, sliding=sliding)
            return torch.cat(list(pieces), dim=-1)

        def predicted(images: Tensor) -> Tensor:
            if views is None:
                return whole(images)
            return mix_views(model, images, partial(whole, images), views, wrap=wrap, band=band, dtype=dtype)

        if source_colours == 0:
            return predicted(images)
        valid = _near_the_horizon(images, band) if wrap else None
        return mix_colours(model, predicted, images, source_colours, valid)

    if level is None:
        logits = logits_of(work, area, wrap)
    else:
        pitch, roll = level
        logits = over_level(
            work,
            lambda turned, shown: logits_of(turned, shown, wrap and shown.closed),
            area=area,
            pitch=pitch,
            roll=roll,
            fill=VIEW_FILL,
        )
    return _enlarged(logits if smooth is None else smooth(logits), full, wrap=wrap)


class Smoothing:
    """Exponential mean of class probabilities over the frames of a video, so that labels flicker less.

    Args:
        weight: Share of what was before, 0 <= weight < 1; a change is taken over to 90 % after
            ``log(0.1) / log(weight)`` frames.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise ValueError(f"smoothing of {weight:g}: expected 0 (none) to less than 1")
        self._weight = weight
        self._mean: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (1, K, h, w) of the mean of this frame and those before."""
        if self._weight == 0:
            return logits
        probs = logits.softmax(dim=1)
        self._mean = probs if self._mean is None else probs.lerp_(self._mean, self._weight)
        return self._mean.clamp(min=_LEAST).log()


def _at_working_size(image: Tensor, size: tuple[int, int], *, wrap: bool) -> Tensor:
    """(1, 3, h, w) uint8 of an image (3, H, W), bit for bit as ``resize_image`` resizes it at once.

    That goes over the columns first and then over the rows, too. Strips keep copies of the whole image away.
    """
    step = max(1, _STRIP_PIXELS // image.shape[2])
    narrow = [
        _resized(strip, (strip.shape[2], size[1]), wrap=wrap) for strip in image[None].split(step, dim=2)
    ]
    return _resized(torch.cat(narrow, dim=2), size, wrap=False)


def _resized(images: Tensor, size: tuple[int, int], *, wrap: bool) -> Tensor:
    return resize_image(images, size, wrap=wrap, margin=0).round_().to(torch.uint8)


def _near_the_horizon(images: Tensor, band: Band) -> Tensor:
    """(1, H, W) bool, rows at most 45 degrees from the horizon; all where there are none."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + 0.5
    near = (band[0] - rows / height * (band[0] - band[1])).abs() <= math.pi / 4
    return (near if bool(near.any()) else ~near)[None, :, None].expand(1, height, width)


def _enlarged(logits: Tensor, size: tuple[int, int], *, wrap: bool) -> tuple[Tensor, Tensor]:
    """Label and confidence (H, W) uint8 of logits (1, K, h, w), strip by strip.

    Labels are those of bilinearly enlarged logits. Where the four logits around a pixel have one class on top, so has
    every mean of them: only pixels between classes are worked out.
    """
    peak = logits.amax(dim=1, keepdim=True)
    sure = 255 * (logits - peak).exp_().sum(dim=1, keepdim=True).reciprocal()
    height, width = logits.shape[-2:]
    # (h * w, K): the logits of a pixel lie together.
    flat = logits[0].permute(1, 2, 0).reshape(height * width, -1).contiguous()
    low = flat.argmax(dim=1).to(torch.uint8).view(height, width)
    # Whether classes differ between a pixel and the next ones to the right and below.
    beside = low.roll(-1, dims=1) if wrap else torch.cat((low[:, 1:], low[:, -1:]), dim=1)
    row = low != beside
    edge = row | _shifted_up(row) | (low != _shifted_up(low))
    places = [torch.arange(side, device=logits.device) for side in size]
    up, down, between_rows = neighbours(height, size[0], places[0], wrap=False)
    left, right, between_columns = neighbours(width, size[1], places[1], wrap=wrap)
    between_rows, between_columns = between_rows.float(), between_columns.float()
    label = torch.empty(size, dtype=torch.uint8)
    confidence = torch.empty(size, dtype=torch.uint8)
    step = max(1, _STRIP_PIXELS // size[1])
    for top in range(0, size[0], step):
        rows = range(top, min(top + step, size[0]))
        cut = slice(rows.start, rows.stop)
        found = low[up[cut]][:, left]
        y, x = edge[up[cut]][:, left].nonzero(as_tuple=True)
        corner = [
            flat[rows_of[cut][y] * width + columns[x]] for rows_of in (up, down) for columns in (left, right)
        ]
        across = between_columns[x, None]
        upper, lower = corner[0].lerp(corner[1], across), corner[2].lerp(corner[3], across)
        found[y, x] = upper.lerp(lower, between_rows[cut][y, None]).argmax(dim=1).to(torch.uint8)
        label[cut] = found.cpu()
        fine = resize_linear(sure, size, wrap=wrap, rows=rows)
        confidence[cut] = fine[0, 0].round().clamp(0, 255).to(torch.uint8).cpu()
    return label, confidence


def _shifted_up(x: Tensor) -> Tensor:
    """Every row replaced by the next; the last one stays."""
    return torch.cat((x[1:], x[-1:]))


def _pieces(
    model: nn.Module,
    work: Tensor,
    *,
    wrap: bool,
    window: int,
    dtype: torch.dtype | None,
    sliding: Sliding | None,
) -> Iterator[Tensor]:
    """Logits (1, K, h, piece) from left to right."""
    width = work.shape[-1]
    if width <= window or closes_itself(model) or sliding is not None:
        yield predict_logits(model, work, wrap=wrap, dtype=dtype, sliding=sliding)
        return
    count = math.ceil(width / window)
    margin = margin_of(window) * 2
    for k in range(count):
        left, right = k * width // count, (k + 1) * width // count
        start, stop = left - margin, right + margin
        if not wrap:
            start, stop = max(0, start), min(width, stop)
        columns = torch.arange(start, stop, device=work.device) % width
        part = work.index_select(-1, columns)
        logits = predict_logits(model, part, wrap=False, dtype=dtype)
        yield logits[..., left - start : right - start]
