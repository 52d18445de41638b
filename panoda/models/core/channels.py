"""Numbers per colour channel, and ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """(C, 1, 1) float32 with one value per channel, on the device of ``like``.

    Filled there: a tensor made from a Python list is copied to a GPU, and the host waits for the copy.
    """
    return torch.cat([torch.full((1, 1, 1), value, device=like.device) for value in values])
