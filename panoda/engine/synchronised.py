"""Layers that see a whole batch although each process holds a share of it.

Batch norms take mean and variance over all processes: torch's SyncBatchNorm on the GPU, and the same in
plain operators on the CPU, where torch has none. Stochastic depth and channel dropout draw for the whole
batch and take their rows. The layers keep their parameters, buffers and names: only their class changes, and
changes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from panoda.system.shares import rows

_Norm = nn.modules.batchnorm._BatchNorm


class CpuSyncBatchNorm(nn.SyncBatchNorm):
    """SyncBatchNorm of CPU tensors, by all-reduce of sums and of squared distances from the mean."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...); statistics over N of all processes and every position."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        local = x.new_full((1,), float(x.numel() // x.shape[1]))
        totals = _AllReduced.apply(torch.cat([x.sum(dim=axes), local]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = x - mean.view(shape)
        var = _AllReduced.apply(centred.square().sum(dim=axes)) / count
        self._track(mean.detach(), var.detach() * (count / (count - 1)))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)


class SharedDropPath(DropPath):
    """Stochastic depth whose draws are those of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, ...)."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        kept = rows(lambda n: x.new_empty((n,) + (1,) * (x.ndim - 1)).bernoulli_(keep), x.shape[0])
        return x * (kept / keep if keep > 0 and self.scale_by_keep else kept)


class SharedDropout2d(nn.Dropout2d):
    """Dropout of whole channels whose draws are those of the whole batch."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if self.p == 0.0 or self.p == 1.0 or not self.training:
            return F.dropout2d(input, self.p, self.training)
        keep = 1 - self.p
        kept = rows(lambda n: input.new_empty(n, input.shape[1], 1, 1).bernoulli_(keep), input.shape[0])
        return input * (kept / keep)


@contextmanager
def synchronised(model: nn.Module, *, norms: bool = True) -> Iterator[None]:
    """Inside, layers of ``model`` that depend on the batch see all of it; ``norms=False``: all but norms."""
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    for module in model.modules():
        to = _counterpart(module)
        if not norms and to is not None and issubclass(to, nn.SyncBatchNorm):
            continue
        if to is not None:
            changed.append((module, type(module)))
            module.__class__ = to
            if isinstance(module, nn.SyncBatchNorm):
                module.process_group = None  # all processes
    try:
        yield
    finally:
        for module, own in changed:
            if isinstance(module, nn.SyncBatchNorm):
                del module.process_group
            module.__class__ = own


def _counterpart(module: nn.Module) -> type[nn.Module] | None:
    if isinstance(module, _Norm) and not isinstance(module, nn.SyncBatchNorm):
        on_cpu = next(module.buffers(), torch.empty(0)).device.type == "cpu"
        return CpuSyncBatchNorm if on_cpu else nn.SyncBatchNorm
    if type(module) is DropPath:
        return SharedDropPath
    return SharedDropout2d if type(module) is nn.Dropout2d else None


class _AllReduced(torch.autograd.Function):
    """Sum over processes of values and, backwards, of gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous().clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
