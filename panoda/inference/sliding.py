"""Sliding-window prediction: a model sees squares of the size it was trained on, however large the image.

As in MMSegmentation and SETR (arXiv 2012.15840): windows a stride apart, the last ones aligned to the
border, logits averaged where windows overlap.

Convention: with ``wrap`` the width is a full circle. Windows then go on around it: as many as the stride
needs, evenly spaced from column 0, none of them cut.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Sliding = tuple[int, int]
"""Side of the square windows and the steps between them, in pixels."""


def window_starts(side: int, sliding: Sliding, *, wrap: bool = False) -> list[int]:
    """First pixels of the windows along one side; a side that one window covers has one.

    Example:
        >>> window_starts(1024, (512, 341)), window_starts(400, (512, 341))
        ([0, 341, 512], [0])
        >>> window_starts(1024, (512, 341), wrap=True)
        [0, 256, 512, 768]
    """
    window, stride = sliding
    if side <= window:
        return [0]
    if wrap:
        count = math.ceil(side / stride)
        return [k * side // count for k in range(count)]
    count = math.ceil((side - window) / stride) + 1
    return [min(k * stride, side - window) for k in range(count)]


def slide(model: nn.Module, x: Tensor, sliding: Sliding, *, wrap: bool, whole_width: bool = False) -> Tensor:
    """Mean of the windows' logits at every pixel.

    Args:
        model: ``model(x) -> (B, K, h, w)`` at the size of its input.
        x: (B, 3, H, W), normalised.
        sliding: Window and stride; a side shorter than the window is taken whole.
        wrap: The width is a full circle.
        whole_width: Windows are as wide as the image: a circle that one window holds, with its margins.

    Returns:
        (B, K, H, W) float32.

    Raises:
        ValueError: a stride that leaves gaps, or windows around the circle for a model that closes each
            input around the circle by itself.
    """
    window, stride = sliding
    if not 1 <= stride <= window:
        raise ValueError(f"windows of {window} pixels {stride} apart: expected a stride from 1 to the window")
    height, width = x.shape[-2:]
    if wrap and width > window and getattr(model, "wraps", False):
        raise ValueError(
            "the model closes its input around the circle (model.wrap), but a window is a part of it; "
            "predict without sliding windows"
        )
    tall, wide = min(window, height), width if whole_width else min(window, width)
    lefts = [0] if whole_width else window_starts(width, sliding, wrap=wrap)
    total: Tensor | None = None
    seen = torch.zeros(height, width, device=x.device)
    for top in window_starts(height, sliding):
        for left in lefts:
            columns = torch.arange(left, left + wide, device=x.device) % width
            logits = model(x[..., top : top + tall, :].index_select(-1, columns)).float()
            if total is None:
                total = logits.new_zeros((*logits.shape[:2], height, width))
            total[..., top : top + tall, :].index_add_(-1, columns, logits)
            seen[top : top + tall].index_add_(-1, columns, seen.new_ones(tall, wide))
    assert total is not None
    return total / seen
