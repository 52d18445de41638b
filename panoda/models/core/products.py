"""Matrix products in float32 on a CPU, by oneDNN where PyTorch would ask another library.

PyTorch computes convolutions with oneDNN and matrix products with the BLAS it was built with. Where that is
MKL and the CPU is not Intel's, oneDNN's products are up to one and a half times as fast, gradients included
(measured on an AMD CPU with AVX-512, docs/benchmarks.md). The operator that ``torch.compile`` calls for
linear layers reaches it; here it is given gradients. Everywhere else (other types and devices, autocast,
export, compilation, small products) PyTorch's own functions are used; the numbers agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Multiply-adds from which oneDNN's faster product outweighs the call through Python (measured).
_LEAST = 1 << 24


def available() -> bool:
    """Whether this PyTorch has oneDNN and the operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_AVAILABLE = available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product of x (..., C) and weight (D, C) transposed, plus bias (D,); see ``F.linear``."""
    if not suits(x, weight):
        return F.linear(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of a (M, K) and every b (N, K, P): (N, M, P)."""
    if not suits(b, a):
        return torch.bmm(a.expand(b.shape[0], -1, -1), b)  # torch.matmul would copy b
    result: Tensor = _Matmul.apply(a, b)
    return result


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of these is computed by oneDNN here."""
    return (
        _AVAILABLE
        and x.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and type(weight) in (Tensor, nn.Parameter)  # parts of several processes know other operators
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # nor exporting, where sizes are symbols
        and x.numel() * weight.shape[0] >= _LEAST
    )


def _times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product of a (..., K) and b (K, P), plus a bias (P,)."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times(x, weight.T, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, weight.shape[0])
        wanted = ctx.needs_input_grad
        return (
            _times(grad, weight) if wanted[0] else None,
            _times(flat.T, x.reshape(-1, weight.shape[1])) if wanted[1] else None,
            flat.sum(dim=0) if wanted[2] else None,
        )


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _stacked([_times(a, one) for one in b])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        pairs = list(zip(grad, b, strict=True))
        grad_a = None
        if ctx.needs_input_grad[0]:
            grad_a = sum((_times(g, one.T) for g, one in pairs), torch.zeros_like(a))
        grad_b = _stacked([_times(a.T, g) for g in grad]) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b


def _stacked(maps: list[Tensor]) -> Tensor:
    return maps[0][None] if len(maps) == 1 else torch.stack(maps)
