"""Gradient accumulation: a batch is computed in micro-batches, one after the other, and stepped on once.

Micro-batches are shards of the batch (``panoda.system.shares``) as those of several processes are. What losses
divide by is not known while the first one is computed; so a dry run without gradients comes first where a
loss reduces anything over the batch (two with hard pixel mining, whose choice of pixels decides what it
divides by). Activations of one micro-batch are held at a time.

The result is the gradient of the full batch, to rounding. Batch norms alone differ: each micro-batch is
normalised by its own statistics, and the running ones move once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from panoda.system.shares import BatchShard, Reductions, batch_shard

Losses = Callable[[int, Any], dict[str, Tensor]]


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
    scale: Callable[[Tensor], Tensor],
    step: int,
    batch: Any,
    *,
    parts: int,
    shard: BatchShard,
    modules: Iterable[nn.Module],
    seed: int,
) -> dict[str, Tensor]:
    """Gradients of a batch, in micro-batches.

    Args:
        losses: A DistributedDataParallel module averages gradients over processes in the last backward pass.
        scale: Of a loss before its backward pass.
        batch: This process's shard of the batch.
        modules: Those whose buffers the losses change: the model, prototypes.
        seed: torch's, for every micro-batch: each samples for the full batch and takes its rows.

    Returns:
        The losses of this process's shard of the batch, detached.
    """
    micro = split(batch, parts)
    reductions = DryRunReductions(shard.reductions)

    # Outside of DistributedDataParallel's forward pass nothing is exchanged.
    local = losses.module if isinstance(losses, DistributedDataParallel) else losses

    def compute(part: int, losses: Losses = local) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        reductions.calls = 0
        with batch_shard(BatchShard(shard.index * parts + part, shard.count * parts, reductions)):
            return losses(step, micro[part])

    norms, sums = _buffers(modules)
    with torch.no_grad(), restored([*norms, *sums]):
        while reductions.dry:
            for part in range(parts):
                compute(part)
                if not reductions.calls:  # nothing is reduced: micro-batches do not depend on each other
                    break
            reductions.finish_dry_run()
    total: dict[str, Tensor] = {}
    for part in range(parts):
        last = part == parts - 1
        # Every micro-batch adds the sums of the full batch, which must count once.
        with restored([] if last else sums):
            values = compute(part, losses if last else local)
        scale(values["loss/total"] / parts).backward()
        for name, value in values.items():
            mean = value.detach() / parts
            total[name] = total[name] + mean if name in total else mean
    return total


class DryRunReductions:
    """Reductions over micro-batches: recorded in dry runs, reduced at their end and then handed out.

    Attributes:
        dry: The next pass is a dry run.
        calls: Reductions so far in this micro-batch.
    """

    def __init__(self, outer: Reductions | None) -> None:
        """``outer`` reduces over processes."""
        self.dry, self.calls = True, 0
        self._outer = outer
        self._recorded: list[tuple[bool, list[Tensor]]] = []  # call -> it gathers, value of every micro-batch
        self._results: list[Tensor] = []

    def finish_dry_run(self) -> None:
        """Reduce what was recorded; another dry run follows the first if values were gathered.

        What is summed after that may depend on them.
        """
        first = not self._results
        self._results = [self._reduced(gathers, values) for gathers, values in self._recorded]
        self.dry = first and any(gathers for gathers, _ in self._recorded)
        self._recorded = []

    def sum(self, value: Tensor) -> Tensor:
        """Sum over micro-batches."""
        return self._next(value, gathers=False)

    def gather(self, value: Tensor) -> Tensor:
        """Values of all micro-batches."""
        return self._next(value, gathers=True)

    def _next(self, value: Tensor, *, gathers: bool) -> Tensor:
        call, self.calls = self.calls, self.calls + 1
        if self.dry:
            if call == len(self._recorded):
                self._recorded.append((gathers, []))
            self._recorded[call][1].append(value)
        return self._results[call] if self._results else value

    def _reduced(self, gathers: bool, values: list[Tensor]) -> Tensor:
        value = torch.cat(values) if gathers else torch.stack(values).sum(dim=0)
        if self._outer is None:
            return value
        return self._outer.gather(value) if gathers else self._outer.sum(value)


@contextmanager
def restored(buffers: list[Tensor]) -> Iterator[None]:
    """Buffers are afterwards what they were."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _buffers(modules: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Running statistics of batch norms, which every micro-batch moves, and all other buffers."""
    norms: list[Tensor] = []
    others: list[Tensor] = []
    for part in (part for module in modules for part in module.modules()):
        is_norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
        (norms if is_norm else others).extend(part.buffers(recurse=False))
    return norms, others
