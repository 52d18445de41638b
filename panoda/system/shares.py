"""The shard of a batch that is computed here, where processes or micro-batches split it.

What a loss divides by and what is sampled must not depend on the split:

- every shard divides by the mean over shards of its denominator, so the mean over shards of a loss, and of
  its gradient, is the loss of the full batch;
- stochastic operations sample as for the full batch, and each shard takes its rows.

Shards have one size: shard p of P holds images p * n to (p + 1) * n. Outside ``batch_shard`` the batch is
whole, and everything here leaves values as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Reductions(Protocol):
    """How a shard gets the values of all shards; no gradients pass."""

    def sum(self, value: Tensor) -> Tensor:
        """Sum over shards."""

    def gather(self, value: Tensor) -> Tensor:
        """Values of all shards, concatenated along dimension 0; all have one shape."""


@dataclass(frozen=True)
class BatchShard:
    """Shard ``index`` of ``count``; without ``reductions`` the values of the others are not needed."""

    index: int = 0
    count: int = 1
    reductions: Reductions | None = None


_FULL = BatchShard()
_current: ContextVar[BatchShard] = ContextVar("batch_shard", default=_FULL)


@contextmanager
def batch_shard(shard: BatchShard) -> Iterator[None]:
    """Losses and samples inside are those of ``shard``."""
    token = _current.set(shard)
    try:
        yield
    finally:
        _current.reset(token)


def rows(draw: Callable[[int], Tensor], count: int, *, dim: int = 0) -> Tensor:
    """Random rows of this shard's ``count`` images, the ones they would get in the full batch.

    ``draw`` makes a random tensor for a number of images, its size along ``dim``.

    Example:
        >>> def draw(count: int) -> Tensor:
        ...     return torch.rand(count, generator=torch.Generator().manual_seed(0))
        >>> full = rows(draw, 4)
        >>> with batch_shard(BatchShard(index=1, count=2)):
        ...     second = rows(draw, 2)
        >>> bool((second == full[2:]).all())
        True
    """
    shard = _current.get()
    if shard.count == 1:
        return draw(count)
    return draw(count * shard.count).narrow(dim, count * shard.index, count)


def summed(value: Tensor) -> Tensor:
    """Sum of ``value`` over all shards; no gradients pass."""
    reductions = _current.get().reductions
    return value if reductions is None else reductions.sum(value.detach())


def gathered(value: Tensor) -> Tensor:
    """``value`` of all shards, concatenated along dimension 0; no gradients pass."""
    reductions = _current.get().reductions
    return value if reductions is None else reductions.gather(value.detach())


def denominator(value: Tensor) -> Tensor:
    """What a loss divides by: the mean over shards of ``value``, and 1 where that is 0."""
    shard = _current.get()
    mean = value if shard.reductions is None else summed(value.float()) / shard.count
    # Not a tiny denominator: its reciprocal times a gradient scale is infinite, and times zero NaN.
    return torch.where(mean > 0, mean, torch.ones_like(mean))
