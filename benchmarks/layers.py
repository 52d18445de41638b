"""Layers of the models on a CPU, forward and backward: ours beside PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, Settings, interleaved
from panoda.models.core.quick import Conv2d, Linear

TOKENS = (50, 256)


def rows(settings: Settings) -> Iterator[Row]:
    """Linear layers and convolutions of Trans4PASS T at the first stage of an image of 200 x 1024."""
    size = (5, 16) if settings.quick else TOKENS
    maps = [
        ("linear 64 to 256", Linear(64, 256), nn.Linear(64, 256), _tokens(64, size)),
        ("linear 256 to 64", Linear(256, 64), nn.Linear(256, 64), _tokens(256, size)),
        ("linear 576 to 128", Linear(576, 128), nn.Linear(576, 128), _tokens(576, size)),
        (
            "depthwise 3x3 of tokens, 256",
            Conv2d(256, 256, 3, padding=1, groups=256),
            nn.Conv2d(256, 256, 3, padding=1, groups=256),
            _tokens(256, size).transpose(1, 2).view(1, 256, *size),
        ),
        (
            "1x1 convolution 128 to 384",
            Conv2d(128, 384, 1, bias=False),
            nn.Conv2d(128, 384, 1, bias=False),
            torch.randn(1, 128, *size),
        ),
    ]
    for name, ours, plain, x in maps:
        plain.load_state_dict(ours.state_dict())
        sides = {"ours": _both_ways(ours, x), "torch": _both_ways(plain, x)}
        seconds = interleaved(sides, repeats=settings.repeats, device=torch.device("cpu"))
        yield {
            "layer": f"{name}, {size[0]}x{size[1]}",
            "ours ms": 1e3 * seconds["ours"],
            "torch ms": 1e3 * seconds["torch"],
            "ratio": seconds["torch"] / seconds["ours"],
        }


def _tokens(channels: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(1, size[0] * size[1], channels)


def _both_ways(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    x = x.detach().requires_grad_()
    grad = torch.ones_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)
