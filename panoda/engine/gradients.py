"""Gradients averaged over the processes that train one model.

Done here and not by torch's DistributedDataParallel: a step runs the model twice (source and target) before
one backward pass, which that wrapper's bookkeeping of unused parameters does not know, and without a wrapper
a model keeps its attributes, its names in checkpoints and its copies (teacher, averages).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 << 20
"""Gradients exchanged at a time; DistributedDataParallel's default."""


class Gradients:
    """Averages gradients over processes, in buckets, each as soon as the backward pass has filled it.

    Buckets go out in one order, from the last parameters to the first, whatever order they fill in: all
    processes must ask for the same exchange at the same time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of all ``parameters`` that train."""
        self._buckets = _buckets([p for p in parameters if p.requires_grad])
        self._bucket_of = {p: i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._waiting: list[int] = []
        self._out: list[tuple[Tensor, Any]] = []
        self._overlaps = False
        self._checked = False
        self._handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._bucket_of]
        self._start()

    def close(self) -> None:
        """Let the parameters go."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """The backward pass inside is the last one before ``finish``: full buckets may go out."""
        self._overlaps = True
        try:
            yield
        finally:
            self._overlaps = False

    def finish(self) -> None:
        """Every gradient is the mean over processes; a parameter without one keeps none."""
        if not self._checked:
            self._check()
        while len(self._out) < len(self._buckets):
            self._send()
        for bucket, (flat, work) in zip(self._buckets, self._out, strict=True):
            work.wait()
            parts = flat.split([p.numel() for p in bucket])
            pairs = [
                (p.grad, part.view_as(p)) for p, part in zip(bucket, parts, strict=True) if p.grad is not None
            ]
            if pairs:
                torch._foreach_copy_([grad for grad, _ in pairs], [part for _, part in pairs])
        self._start()

    def _start(self) -> None:
        self._waiting = [len(bucket) for bucket in self._buckets]
        self._out = []

    def _arrived(self, parameter: Tensor) -> None:
        if not self._overlaps:
            return
        self._waiting[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        while len(self._out) < len(self._buckets) and self._waiting[len(self._out)] == 0:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._out)]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        flat /= dist.get_world_size()
        self._out.append((flat, dist.all_reduce(flat, async_op=True)))

    def _check(self) -> None:
        """Once: the same parameters have gradients everywhere, or means would go into some copies alone."""
        has = torch.tensor([p.grad is not None for p in self._bucket_of], dtype=torch.int64)
        total = has.clone()
        dist.all_reduce(total)
        if not torch.equal(total, has * dist.get_world_size()):
            raise RuntimeError(
                f"{int((total != has * dist.get_world_size()).sum())} parameters have a gradient in some "
                "processes only: the losses must use the same parts of the model for every share of a batch"
            )
        self._checked = True


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[Gradients]:
    """The gradients of an optimiser's parameters; let go in the end."""
    gradients = Gradients(p for group in optimizer.param_groups for p in group["params"])
    try:
        yield gradients
    finally:
        gradients.close()


def before_step(gradients: Gradients) -> Callable[..., None]:
    """A hook that averages right before an optimiser's step."""

    def average(*_: Any) -> None:
        gradients.finish()

    return average


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """From the last parameter to the first; of one type and device, of ``BUCKET_BYTES`` or one tensor."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for p in reversed(parameters):
        last = buckets[-1][-1] if buckets else None
        fits = last is not None and (last.dtype, last.device) == (p.dtype, p.device)
        if not fits or size + p.nbytes > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.nbytes
    return buckets
