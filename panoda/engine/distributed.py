"""What the processes that train one model exchange, and what only the first of them does.

Each computes an equal shard of every batch (``panoda.system.shares``), so ``batch_size`` means the same for any
number of processes. With one process every function here leaves values as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from panoda.system.context import RunContext
from panoda.system.files import staged_directory
from panoda.system.shares import BatchShard

TIMEOUT = timedelta(minutes=30)
T = TypeVar("T")


@contextmanager
def process_group(context: RunContext, rendezvous: Path) -> Iterator[None]:
    """Join the other processes; they find each other through the file ``rendezvous``.

    CUDA tensors go through NCCL, those of the CPU through gloo.
    """
    cuda = context.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(context.device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=f"file://{rendezvous}",
        rank=context.rank,
        world_size=context.world,
        timeout=TIMEOUT,
    )
    yield
    # Not after an error: the others would learn of a broken connection before they learn of the error.
    dist.destroy_process_group()


def barrier(context: RunContext) -> None:
    """Wait until every process is here."""
    if context.world > 1:
        # On the CPU: NCCL's barrier would wait for all work of the GPU, too.
        dist.all_reduce(torch.zeros(1))


def broadcast(value: T, context: RunContext) -> T:
    """The first process's ``value`` in every process; anything that pickles."""
    if context.world == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: T, context: RunContext) -> list[T]:
    """``value`` of every process, in every process; anything that pickles and lies on the CPU."""
    if context.world == 1:
        return [value]
    values: list[Any] = [None] * context.world
    dist.all_gather_object(values, value)
    return values


def mean(values: Mapping[str, Tensor], context: RunContext) -> dict[str, float]:
    """Means over processes of named scalars; waits for the device."""
    found = gather({name: float(value) for name, value in values.items()}, context)
    return {name: sum(one[name] for one in found) / len(found) for name in values}


def agree(context: RunContext, *questions: bool) -> tuple[bool, ...]:
    """Each question's answer is yes in every process if it is in any of them."""
    if context.world == 1:
        return questions
    answers = torch.tensor(questions, dtype=torch.int64)
    dist.all_reduce(answers, op=dist.ReduceOp.MAX)
    return tuple(bool(answer) for answer in answers.tolist())


@contextmanager
def result_directory(out: Path, context: RunContext) -> Iterator[Path]:
    """``staged_directory`` of the first process; the others get its path, to read and not to write."""
    with staged_directory(out) if context.main else nullcontext(Path()) as mine:
        folder = broadcast(mine, context)
        yield folder
        barrier(context)
    barrier(context)


def own_shard(context: RunContext) -> BatchShard:
    """The shard of every batch that this process computes."""
    reductions = _Collectives() if context.world > 1 else None
    return BatchShard(context.rank, context.world, reductions)


class _Collectives:
    """``panoda.system.shares.Reductions`` over processes."""

    def sum(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)
