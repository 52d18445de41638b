"""Gradient accumulation: a batch is computed in micro-batches, one after the other, and stepped on once.

Micro-batches are shares (``panoda.system.shares``) as those of several processes are, only not computed at the same
time: what losses divide by, and what else they sum over the batch, is not known while the first one is
computed. So the losses are first computed without gradients to note these values, and then with gradients.
That is one more forward pass (two with hard pixel mining, whose choice of pixels decides what it divides by);
activations of one micro-batch are held at a time.

What comes out, to rounding, is the gradient of the whole batch: every loss of this package, class means of
prototypes and stochastic depth included. Batch norms alone differ: each micro-batch is normalised by its own
statistics, and the running ones move once for each. The adversarial loss is a mean over outputs, of which
every micro-batch has equally many; the discriminator steps once, on the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from panoda.system.shares import Exchange, Share, taking

Losses = Callable[[Any], dict[str, Tensor]]


def split(batch: Any, parts: int) -> list[Any]:
    """A batch in ``parts`` equal ones: tensors and lists of samples, in dicts and tuples.

    Raises:
        ValueError: the batch does not divide.

    Example:
        >>> split({"ids": ["a", "b", "c", "d"]}, 2)
        [{'ids': ['a', 'b']}, {'ids': ['c', 'd']}]
    """
    if isinstance(batch, tuple):
        return list(zip(*(split(one, parts) for one in batch), strict=True))
    if isinstance(batch, dict):
        columns = {key: split(value, parts) for key, value in batch.items()}
        return [{key: column[part] for key, column in columns.items()} for part in range(parts)]
    if len(batch) % parts:
        raise ValueError(
            f"{len(batch)} samples do not split into {parts} micro-batches: set accumulate to a divisor of "
            "batch_size, of its share where several processes train"
        )
    size = len(batch) // parts
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def batch_size(batch: Any) -> int:
    """Samples of a batch, of each of them where it is a tuple of several."""
    if isinstance(batch, tuple):
        return batch_size(batch[0])
    return len(next(iter(batch.values()))) if isinstance(batch, dict) else len(batch)


def finer(size: int, parts: int) -> int | None:
    """The next number of micro-batches to try for ``size`` samples: at least twice ``parts``; None = none.

    Example:
        >>> finer(12, 2), finer(12, 3), finer(12, 12)
        (4, 6, None)
    """
    return next((n for n in range(2 * parts, size + 1) if size % n == 0), None)


def accumulate(
    losses: Losses,
    backward: Callable[[Tensor, bool], None],
    batch: Any,
    *,
    parts: int,
    share: Share,
    modules: Iterable[nn.Module],
    seed: int,
) -> dict[str, Tensor]:
    """Gradients of a batch, in micro-batches.

    Args:
        losses: Batch -> named losses; ``loss/total`` is minimised.
        backward: Takes a loss to differentiate, and whether it is the step's last one.
        batch: This process's share of the batch.
        parts: Micro-batches.
        share: Of this process.
        modules: Those whose buffers the losses change: the model, prototypes.
        seed: torch's, for every micro-batch: each draws for the whole batch and takes its rows.

    Returns:
        The losses of this process's share of the batch, detached.
    """
    micro = split(batch, parts)
    norms, sums = _buffers(modules)
    exchange = _Rehearsed(share.exchange, parts)

    def compute(part: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        exchange.begin(part)
        with taking(Share(share.part * parts + part, share.parts * parts, exchange)):
            return losses(micro[part])

    again = True
    with torch.no_grad(), _put_back([*norms, *sums]):
        while again:
            for part in range(parts):
                compute(part)
            again = exchange.close()
    total: dict[str, Tensor] = {}
    for part in range(parts):
        last = part == parts - 1
        # Every micro-batch adds the sums of the whole batch, which must count once.
        with _put_back([] if last else sums):
            values = compute(part)
        backward(values["loss/total"] / parts, last)
        for name, value in values.items():
            mean = value.detach() / parts
            total[name] = total[name] + mean if name in total else mean
    return total


class _Rehearsed:
    """Exchange between micro-batches: values noted in a rehearsal, put together and handed out afterwards."""

    def __init__(self, outer: Exchange | None, parts: int) -> None:
        self._outer, self._parts = outer, parts
        self._noted: list[list[Tensor]] = []  # call -> value of every micro-batch
        self._gathers: list[bool] = []  # call -> it gathers
        self._known: list[Tensor] = []  # call -> what it gives
        self._call, self._rehearsals, self._open = 0, 0, True

    def begin(self, part: int) -> None:
        """Micro-batch ``part`` is computed next."""
        self._call = 0
        if self._open and part == 0:
            self._gathers = []

    def close(self) -> bool:
        """Put the values of a rehearsal together; True when another one is needed.

        Values that are summed after others were gathered may depend on these.
        """
        self._known = []
        for values, gathered in zip(self._noted, self._gathers, strict=True):
            value = torch.cat(values) if gathered else torch.stack(values).sum(dim=0)
            if self._outer is not None:
                value = self._outer.gather(value) if gathered else self._outer.sum(value)
            self._known.append(value)
        self._rehearsals += 1
        self._noted = []
        self._open = self._rehearsals < 2 and any(self._gathers)
        return self._open

    def sum(self, value: Tensor) -> Tensor:
        """Sum over micro-batches."""
        return self._take(value, gathers=False)

    def gather(self, value: Tensor) -> Tensor:
        """Values of all micro-batches."""
        return self._take(value, gathers=True)

    def _take(self, value: Tensor, *, gathers: bool) -> Tensor:
        call = self._call
        self._call += 1
        if self._open:
            if call == len(self._noted):
                self._noted.append([])
                self._gathers.append(gathers)
            self._noted[call].append(value.clone())
        return self._known[call].clone() if call < len(self._known) else value.clone()


def _buffers(modules: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Running statistics of batch norms, which every micro-batch moves, and all other buffers."""
    norms: list[Tensor] = []
    others: list[Tensor] = []
    for module in modules:
        for part in module.modules():
            is_norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
            (norms if is_norm else others).extend(part.buffers(recurse=False))
    return norms, others


@contextmanager
def _put_back(buffers: list[Tensor]) -> Iterator[None]:
    """Buffers are afterwards what they were."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
