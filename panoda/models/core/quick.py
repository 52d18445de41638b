"""Layers of models built from other libraries' blocks, computed faster on a CPU at the same numbers.

``quicken`` puts them in the place of PyTorch's; names, parameters and results (to rounding) stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from panoda.models.core.products import linear, matmul, suits


class Linear(nn.Linear):
    """``torch.nn.Linear`` through ``panoda.models.core.products.linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) -> (..., D)."""
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that knows a channels-last map of one image, and a matrix product.

    Tokens seen as a map are channels-last. With one image PyTorch gives the batch a stride that hides it,
    so the convolution would copy the map, compute in the slower layout (a depthwise one takes three times
    as long) and hand that layout on to every layer up to the next linear one. A 1x1 convolution of a map
    that is not channels-last is a matrix product, and faster than one (docs/log.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, Ho, Wo)."""
        if input.device.type != "cpu" or torch.compiler.is_compiling():  # sizes may be symbols
            return super().forward(input)
        if len(input) == 1 and input.is_contiguous(memory_format=torch.channels_last):
            input = _ChannelsLast.apply(input)
        elif self._is_product and suits(input, self.weight) and input.is_contiguous():
            out = matmul(self.weight.flatten(1), input.flatten(2)).unflatten(2, input.shape[2:])
            return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)
        return super().forward(input)

    @property
    def _is_product(self) -> bool:
        unmoved = self.kernel_size == self.stride == (1, 1) and self.padding in ("valid", (0, 0))
        return unmoved and self.groups == 1


def quicken(model: nn.Module) -> None:
    """Let every plain ``nn.Linear`` and ``nn.Conv2d`` of a model be one of these."""
    for module in model.modules():
        for plain, quick in ((nn.Linear, Linear), (nn.Conv2d, Conv2d)):
            if type(module) is plain:
                module.__class__ = quick


class _ChannelsLast(torch.autograd.Function):
    """The same values under the strides that PyTorch recognises as channels-last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        _, channels, _, width = x.shape
        return x.as_strided(x.shape, (x.numel(), 1, width * channels, channels))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
