"""Several processes train one model: who is who, what they exchange, and what only one of them does.

Every process holds the whole model and computes an equal share of every batch (``panoda.system.shares``). A loss of
a share is divided by the mean of the shares' denominators, so the mean of gradients and of logged values over
processes is that of the whole batch, and batch_size means the same for any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from panoda.engine.gradients import Gradients, averaged, before_step
from panoda.engine.preemption import StopRequest
from panoda.engine.sharding import is_sharded
from panoda.system.context import RunContext
from panoda.system.files import staged_directory
from panoda.system.shares import Share, taking

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others; a process that fails ends the others at once."""
T = TypeVar("T")


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """Join the other processes that torchrun started; yields this one's rank and the number of processes.

    CUDA tensors go through NCCL, those of the CPU through gloo.

    Raises:
        ValueError: not started by torchrun.
    """
    missing = [
        name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ValueError(f"{', '.join(missing)} not set: start several processes with torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield dist.get_rank(), dist.get_world_size()
    # Not after an error: the others would learn of a broken connection before they learn of the error.
    dist.destroy_process_group()


def meet(context: RunContext) -> None:
    """Wait until every process is here.

    Raises:
        RuntimeError: one did not come in time.
    """
    if context.world > 1:
        # On the CPU: a barrier of NCCL would count the work that a GPU still has to do as waiting.
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


@contextmanager
def result_directory(out: Path, context: RunContext) -> Iterator[Path]:
    """``staged_directory`` of the first process; the others get its path, to read and not to write."""
    if context.world == 1:
        with staged_directory(out) as folder:
            yield folder
        return
    with staged_directory(out) if context.main else nullcontext(Path()) as mine:
        folder = broadcast(mine, context)
        yield folder
        meet(context)
    meet(context)


class Team:
    """What the training loop does with the other processes; alone, all of it leaves values as they are.

    Attributes:
        world: Number of processes.
    """

    def __init__(self, context: RunContext) -> None:
        """Of the processes of ``context``."""
        self.world, self._context = context.world, context
        self._share = Share(context.rank, context.world, _Exchange()) if context.world > 1 else Share()
        self._gradients: Gradients | None = None

    @contextmanager
    def training(
        self, trained: nn.Module, optimizer: torch.optim.Optimizer, components: Mapping[str, Any], step: int
    ) -> Iterator[None]:
        """Make every process's components those of the first one, and keep them so inside.

        Batch norms take the statistics of the whole batch. The gradients of ``optimizer`` are averaged by
        ``backward``, those of every other optimiser among the components right before its steps.

        Raises:
            RuntimeError: the processes are not all at ``step``.
        """
        if self.world == 1:
            yield
            return
        # Imported here: it takes seconds, and who trains has long paid for it.
        from panoda.engine.synchronised import synchronised

        steps = gather(step, self._context)
        if len(set(steps)) > 1:
            raise RuntimeError(f"the processes resumed at different steps: {steps}; do they share one disk?")
        for part in components.values():
            if isinstance(part, nn.Module):
                _copy_from_first(part)
        with ExitStack() as stack:
            stack.enter_context(synchronised(trained))
            if not is_sharded(trained):  # their gradients come as means already
                self._gradients = stack.enter_context(averaged(optimizer))
            for part in components.values():
                if isinstance(part, torch.optim.Optimizer) and part is not optimizer:
                    own = stack.enter_context(averaged(part))
                    handle = part.register_step_pre_hook(before_step(own))
                    stack.callback(handle.remove)
            yield
            self._gradients = None

    @property
    def own_share(self) -> Share:
        """Of this process."""
        return self._share

    def whole_draws(self, trained: nn.Module) -> AbstractContextManager[None]:
        """Inside, layers of ``trained`` that draw do so for the whole batch, whatever it is split into."""
        if self.world > 1:
            return nullcontext()  # ``training`` has seen to it
        from panoda.engine.synchronised import synchronised

        return synchronised(trained, norms=False)

    @contextmanager
    def share(self) -> Iterator[None]:
        """Losses and random draws inside are those of this process's share of the batch."""
        with taking(self._share):
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of ``loss``, averaged over processes while they come in."""
        if self._gradients is None:
            loss.backward()
            return
        with self.share(), self._gradients.overlapping():
            loss.backward()
        self._gradients.finish()

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over processes of named scalars; waits for the device."""
        if self.world == 1:
            return {k: float(v) for k, v in values.items()}
        row = torch.stack([v.detach().double().cpu() for v in values.values()])
        dist.all_reduce(row)
        return dict(zip(values, (row / self.world).tolist(), strict=True))

    def agree(self, stop: StopRequest, late: bool) -> tuple[StopRequest, bool]:
        """Whether to stop and whether a resume point is late, the same for all: if any of them says so."""
        if self.world == 1:
            return stop, late
        said = torch.tensor([bool(stop), late], dtype=torch.int64)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        together = StopRequest()
        together.name = "SIGTERM" if int(said[0]) else None
        return together, bool(said[1])


class _Exchange:
    """``panoda.system.shares.Exchange`` between processes."""

    def sum(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)


@torch.no_grad()
def _copy_from_first(module: nn.Module) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor, src=0)
