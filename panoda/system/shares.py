"""The share of a step's batch that is computed here and now, when the batch is split.

Several processes (or several micro-batches) compute one step together. What a loss divides by and what is
drawn at random must then not depend on the split:

- every share divides by the mean over shares of its denominator, so that the mean over shares of a loss, and
  of its gradient, is the loss of the whole batch;
- random numbers of a batch are drawn for the whole batch, and each share takes its rows.

Shares are of equal size and follow each other: share p of P holds images p * n to (p + 1) * n. Outside
``taking`` there is one share, and everything here leaves values as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Exchange(Protocol):
    """How shares that are computed at the same time see each other's values (no gradients pass)."""

    def sum(self, value: Tensor) -> Tensor:
        """Sum over shares; a new tensor."""

    def gather(self, value: Tensor) -> Tensor:
        """Values of all shares one after the other, along dimension 0; all have one shape."""


@dataclass(frozen=True)
class Share:
    """Part ``part`` of ``parts`` equal ones of a batch.

    Attributes:
        part: Position, from 0.
        parts: Number of shares.
        exchange: Where the others' values come from; None = they are not needed.
    """

    part: int = 0
    parts: int = 1
    exchange: Exchange | None = None


_WHOLE = Share()
_current: ContextVar[Share] = ContextVar("share", default=_WHOLE)


@contextmanager
def taking(share: Share) -> Iterator[None]:
    """Everything inside computes ``share``."""
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Share:
    """The share being computed."""
    return _current.get()


def rows(draw: Callable[[int], Tensor], count: int, *, dim: int = 0) -> Tensor:
    """Random rows of this share's ``count`` images, the ones they would get in the whole batch.

    Args:
        draw: Number of images -> random tensor with that size along ``dim``.
        count: Images of this share.
        dim: Dimension of the images.

    Example:
        >>> def draw(count: int) -> Tensor:
        ...     return torch.rand(count, generator=torch.Generator().manual_seed(0))
        >>> whole = rows(draw, 4)
        >>> with taking(Share(part=1, parts=2)):
        ...     second = rows(draw, 2)
        >>> bool((second == whole[2:]).all())
        True
    """
    share = _current.get()
    if share.parts == 1:
        return draw(count)
    return draw(count * share.parts).narrow(dim, count * share.part, count)


def summed(value: Tensor) -> Tensor:
    """Sum of ``value`` over all shares; no gradients pass."""
    exchange = _current.get().exchange
    return value if exchange is None else exchange.sum(value.detach())


def gathered(value: Tensor) -> Tensor:
    """``value`` of all shares, one after the other along dimension 0; no gradients pass."""
    exchange = _current.get().exchange
    return value if exchange is None else exchange.gather(value.detach())


def denominator(value: Tensor) -> Tensor:
    """What a loss divides by: the mean over shares of ``value``, and 1 where that is 0.

    Args:
        value: Scalar, not negative: labelled pixels of this share, or the sum of their weights.
    """
    share = _current.get()
    mean = value if share.exchange is None else share.exchange.sum(value.detach().float()) / share.parts
    # Not a tiny denominator: its reciprocal times a gradient scale is infinite, and times zero NaN.
    return torch.where(mean > 0, mean, torch.ones_like(mean))
