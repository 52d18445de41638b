"""Prediction at several scales, without a seam at +-180 degrees.

Convention: with ``wrap`` the width is a full circle. Images are then extended at both sides by a margin of
their other end before the model sees them, and every resize treats columns as periodic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F  # noqa: N812

from panoda.data.loading.transforms import normalise
from panoda.geometry.erp import HALF_PI
from panoda.geometry.views import SURE, Views, mixed, over_views
from panoda.inference.sliding import Sliding, slide
from panoda.models.core.colours import in_source_colours

MIN_SIDE = 32
"""Smallest input side of the models in pixels."""
MARGIN_UNIT = 32
"""Margins are multiples of the models' largest stride, so that their grid stays in place."""
VIEW_FILL = 128.0
"""Grey of what perspective views show above and below a band."""
Band = tuple[float, float]
"""Latitudes of the upper and lower edge in radians."""
SPHERE: Band = (HALF_PI, -HALF_PI)


def predict_logits(
    model: nn.Module,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    wrap: bool,
    dtype: torch.dtype | None = None,
    sliding: Sliding | None = None,
    views: Views | None = None,
    band: Band = SPHERE,
    source_colours: float = 0.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean logits over scales and, on demand, the mirrored image; without gradients.

    Args:
        model: ``model(x) -> (B, K, h, w)``; in evaluation mode during the call, its mode is restored.
        images: (B, 3, H, W) uint8 on the model's device.
        scales: Factors on height and width.
        flip: Also predict the mirrored image.
        wrap: The width is a full circle.
        dtype: Autocast type; None leaves autocast as it is.
        sliding: (window, stride) in pixels of the scaled image: square windows are predicted one after the
            other and averaged where they overlap; None = the whole image at once.
        views: Perspective views, predicted one after the other and mixed with the rest; None = none.
        band: Latitudes of the images' upper and lower edge in radians; with views only.
        source_colours: Weight of the images in the colours that the model learned from, beside 1 for the images as
            they are.
        valid: (B, H, W) or (1, H, W) bool, pixels whose colours count; with source_colours only. None = all.

    Returns:
        (B, K, H, W) float32.

    Raises:
        ValueError: windows that leave gaps or do not suit the model, views of what is no full circle, or
            source_colours for a model that does not know them.
    """
    options: dict[str, Any] = {"scales": scales, "flip": flip, "dtype": dtype}
    if source_colours > 0:
        both = partial(predict_logits, model, wrap=wrap, sliding=sliding, views=views, band=band, **options)
        return mix_colours(model, both, images, source_colours, valid)
    if views is not None:
        whole = partial(predict_logits, model, images, wrap=wrap, sliding=sliding, **options)
        return mix_views(model, images, whole, views, wrap=wrap, band=band, **options)
    total: Tensor | None = None
    with _inference(model, images, dtype):
        passes = _views(model, images, scales, flip=flip, wrap=wrap, sliding=sliding)
        for view, mirrored, size, margin in passes:
            if sliding is None:
                logits = model(view)
            else:
                logits = slide(model, view, sliding, wrap=wrap, whole_width=margin > 0)
            logits = _crop(logits.float(), margin, size[1])
            logits = resize_linear(logits, (images.shape[-2], images.shape[-1]), wrap=wrap)
            logits = logits.flip(-1) if mirrored else logits
            total = logits if total is None else total + logits
    assert total is not None
    count = len(scales) * (2 if flip else 1)
    return total if count == 1 else total / count


def predict_features(
    model: nn.Module,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    wrap: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean logits and mean features over scales; arguments as in ``predict_logits``.

    The model must answer ``model(x, return_features=True)`` with logits and features at its feature stride s.

    Returns:
        logits (B, K, H, W) and features (B, D, ceil(H / s), ceil(W / s)), float32.
    """
    height, width = images.shape[-2:]
    stride = _stride(model)
    totals: list[Tensor] = []
    with _inference(model, images, dtype):
        for view, _, size, margin in _views(model, images, scales, flip=False, wrap=wrap):
            logits, features = model(view, return_features=True)
            logits = _crop(logits.float(), margin, size[1])
            features = _crop(features.float(), margin // stride, -(-size[1] // stride))
            parts = [
                resize_linear(logits, (height, width), wrap=wrap),
                resize_linear(features, (-(-height // stride), -(-width // stride)), wrap=wrap),
            ]
            totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    return totals[0] / len(scales), totals[1] / len(scales)


def mix_colours(
    model: nn.Module,
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    share: float,
    valid: Tensor | None,
) -> Tensor:
    """Mean of what ``predict`` gives for images as they are and, with weight ``share``, in the model's colours.

    ``predict`` takes images (B, 3, H, W) uint8 and gives logits (B, K, H, W).
    """
    if valid is None:
        valid = torch.ones(1, *images.shape[-2:], dtype=torch.bool, device=images.device)
    recoloured = in_source_colours(model, images, valid)
    return (predict(images) + share * predict(recoloured)) / (1 + share)


def mix_views(
    model: nn.Module,
    images: Tensor,
    whole: Callable[[], Tensor],
    views: Views,
    *,
    wrap: bool,
    band: Band,
    **options: Any,
) -> Tensor:
    """Logits of perspective views, mixed with those of the whole images where these have a share.

    Args:
        whole: Gives the logits (B, K, H, W) of the whole images; not asked where views alone count.
        options: ``scales``, ``flip``, ``dtype`` of ``predict_logits``, for every view.

    Returns:
        (B, K, H, W) float32.

    Raises:
        ValueError: images that are no full circles, or a model that closes its input around the circle.
    """
    if not wrap:
        raise ValueError("perspective views are of full circles, and this is none; predict without views")
    if closes_itself(model):
        raise ValueError(
            "the model closes its input around the circle (model.wrap), but a view is a part of it; predict "
            "without views"
        )
    one = partial(predict_logits, model, wrap=False, **options)
    seen, weights = over_views(images, one, views, lat_top=band[0], lat_bottom=band[1], fill=VIEW_FILL)
    if views.share == 1 and bool((weights >= SURE).all()):
        return seen
    return mixed(whole(), seen, weights, views.share)


def resize_linear(x: Tensor, size: tuple[int, int], *, wrap: bool, rows: range | None = None) -> Tensor:
    """Bilinear resize (pixel centres at +0.5) of (B, C, h, w) with, on demand, periodic columns.

    Args:
        x: (B, C, h, w) floating point.
        size: Height and width of the whole result.
        wrap: Columns are periodic; otherwise they are clamped, as rows always are.
        rows: Rows of the result to compute; None = all.

    Returns:
        (B, C, rows or height, width).
    """
    if rows is not None:
        x = _lerp(x, -2, size[0], torch.arange(rows.start, rows.stop, device=x.device), wrap=False)
        size = (x.shape[-2], size[1])
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    result = interpolate(x, size=size, mode="bilinear", align_corners=False)
    old, new = x.shape[-1], size[1]
    if wrap and old != new:
        # PyTorch clamps the columns; those that lie between the last and the first are computed again.
        ends = math.ceil(new / old / 2)
        columns = torch.arange(-ends, ends, device=x.device) % new
        seam = _lerp(x, -1, new, columns, wrap=True)
        seam = interpolate(seam, size=(size[0], 2 * ends), mode="bilinear", align_corners=False)
        result.index_copy_(-1, columns, seam)
    return result


def _lerp(x: Tensor, dim: int, size: int, wanted: Tensor, *, wrap: bool) -> Tensor:
    """Rows or columns ``wanted`` of ``x`` at a new size."""
    first, second, weight = neighbours(x.shape[dim], size, wanted, wrap=wrap)
    weight = (weight if dim == -1 else weight[:, None]).to(x.dtype)
    return torch.lerp(x.index_select(dim, first), x.index_select(dim, second), weight)


def neighbours(old: int, new: int, wanted: Tensor, *, wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For ``wanted`` of ``new`` places the two of ``old`` around each, and how near it is to the second (0..1)."""
    place = (wanted.to(torch.float64) + 0.5) * old / new - 0.5
    low = place.floor()
    around = (low.long(), low.long() + 1)
    first, second = (one % old if wrap else one.clamp(0, old - 1) for one in around)
    return first, second, place - low


@contextmanager
def _inference(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> Iterator[None]:
    """Evaluation mode, no gradients, autocast on demand."""
    training = model.training
    model.eval()
    try:
        # Not inference_mode: a teacher's predictions are targets of a loss with gradients.
        with torch.no_grad():
            if dtype is None:
                yield
            else:
                with torch.autocast(images.device.type, dtype=dtype):
                    yield
    finally:
        model.train(training)


def _stride(model: nn.Module) -> int:
    return int(getattr(model, "feature_stride", 4))


def closes_itself(model: nn.Module) -> bool:
    """The model closes panoramas around the circle itself."""
    return bool(getattr(model, "wraps", False))


def _views(
    model: nn.Module,
    images: Tensor,
    scales: Sequence[float],
    *,
    flip: bool,
    wrap: bool,
    sliding: Sliding | None = None,
) -> Iterator[tuple[Tensor, bool, tuple[int, int], int]]:
    """(normalised input, is it mirrored, its size without margins, its margin) per scale and side.

    Windows that slide around the circle need no margin.
    """
    if closes_itself(model) and not wrap:
        raise ValueError(
            "the model closes its input around the circle (model.wrap), but this is no full circle; predict "
            "whole panoramas with it, or train a model with wrap: false"
        )
    height, width = images.shape[-2:]
    cell = math.lcm(4, _stride(model))
    for scale in scales:
        size = (_scaled(height, scale, cell), _scaled(width, scale, cell))
        around = sliding is not None and size[1] > sliding[0]
        margin = margin_of(size[1], cell) if wrap and not closes_itself(model) and not around else 0
        view = normalise(resize_image(images, size, wrap=wrap, margin=margin) / 255)
        yield view, False, size, margin
        if flip:
            yield view.flip(-1), True, size, margin


def _scaled(side: int, scale: float, cell: int) -> int:
    """Scaled side: untouched at scale 1, else whole cells, which keeps the feature grid periodic."""
    if scale == 1 and side >= MIN_SIDE:
        return side
    return max(-(-MIN_SIDE // cell), round(side * scale / cell)) * cell


def margin_of(width: int, cell: int = 4) -> int:
    """A sixteenth of the width, at least one unit, at most the width (or one cell), in whole cells."""
    unit = math.lcm(MARGIN_UNIT, cell)
    return min(unit * math.ceil(width / (16 * unit)), max(cell, width // cell * cell))


def resize_image(images: Tensor, size: tuple[int, int], *, wrap: bool, margin: int) -> Tensor:
    """Antialiased resize of (B, 3, H, W) uint8, extended by ``margin`` columns at both sides.

    Returns:
        (B, 3, h, w + 2 * margin) float32 in 0..255.
    """
    width = images.shape[-1]
    if tuple(images.shape[-2:]) == size:
        return _extended(images, margin).float()
    if not wrap:
        return F.resize(images, list(size), antialias=True).float()
    # Columns are added in units that are whole pixels both before and after the resize, so it stays periodic;
    # two pixels more than the margin keep the antialiasing filter away from the ends.
    unit = math.gcd(width, size[1])
    count = math.ceil((margin + 2) / (size[1] // unit))
    raw, fine = count * (width // unit), count * (size[1] // unit)
    result = F.resize(_extended(images, raw), [size[0], size[1] + 2 * fine], antialias=True)
    return result[..., fine - margin : fine + size[1] + margin].float()


def _extended(x: Tensor, margin: int) -> Tensor:
    """Periodic continuation by ``margin`` columns at both sides; the margin may exceed the width."""
    if margin == 0:
        return x
    columns = torch.arange(-margin, x.shape[-1] + margin, device=x.device) % x.shape[-1]
    return x.index_select(-1, columns)


def _crop(x: Tensor, margin: int, width: int) -> Tensor:
    return x if margin == 0 else x[..., margin : margin + width]
