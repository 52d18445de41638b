"""The kernels of torch's SyncBatchNorm, which only GPUs have, in plain operators for the stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _over(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


def _wide(channels: Tensor, like: Tensor) -> Tensor:
    return channels.float().view([1, -1] + [1] * (like.ndim - 2))


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x.float(), dim=_over(x), correction=0)
    return mean, torch.rsqrt(var + eps)


def _gather_stats(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share, count = counts[:, None] / counts.sum(), float(counts.sum())
    mean = (share * means).sum(dim=0)
    var = (share * (invstds**-2 - eps + (means - mean) ** 2)).sum(dim=0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * count / (count - 1), momentum)
    return mean, torch.rsqrt(var + eps)


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    out = (x.float() - _wide(mean, x)) * _wide(invstd * weight, x) + _wide(bias, x)
    return out.to(x.dtype)


def _backward_sums(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *_: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = grad.float().sum(dim=_over(x))
    along = (grad.float() * (x.float() - _wide(mean, x))).sum(dim=_over(x))
    return total, along, along * invstd, total.clone()


def _backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    total: Tensor,
    along: Tensor,
    counts: Tensor,
) -> Tensor:
    count = counts.sum()
    moved = (x.float() - _wide(mean, x)) * _wide(invstd**2 * along / count, x)
    out = (grad.float() - _wide(total / count, x) - moved) * _wide(invstd * weight, x)
    return out.to(x.dtype)


KERNELS: dict[Any, Callable[..., Any]] = {
    aten.batch_norm_stats.default: _stats,
    aten.batch_norm_gather_stats_with_counts.default: _gather_stats,
    aten.batch_norm_elemt.default: _normalise,
    aten.batch_norm_backward_reduce.default: _backward_sums,
    aten.batch_norm_backward_elemt.default: _backward,
}
"""By what they stand for."""
