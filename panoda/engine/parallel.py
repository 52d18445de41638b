"""One model in several processes: DistributedDataParallel, or FSDP2 for models too large for one GPU.

Norms take the statistics of the full batch (SyncBatchNorm) and stochastic layers sample as for the full
batch. Parameters, buffers and their names stay what they are, and what is saved is always full: resume points
and models do not tell how they were trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import DropPath, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from panoda.engine.accumulation import Losses
from panoda.engine.resume_points import Stateful
from panoda.models.core.registry import create_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.context import RunContext
from panoda.system.shares import rows

if TYPE_CHECKING:
    from panoda.engine.task import Task

Norm = nn.modules.batchnorm._BatchNorm


def parallelise(task: Task, context: RunContext) -> None:
    """Prepare a task's models for training with other processes, in place, before an optimiser is built.

    Raises:
        ValueError: shards in float16, whose gradient scaling knows none.
    """
    if context.world == 1:
        return
    model = task.trained
    sample_for_full_batch(model)
    if context.device.type == "cpu":  # torch's synchronised norms take GPU tensors alone
        for norm in (m for m in model.modules() if isinstance(m, Norm)):
            norm.register_forward_pre_hook(lambda m, args: (_FullBatch.apply(*args),) if m.training else None)
            norm.register_forward_hook(
                lambda m, _, out: out.chunk(context.world)[context.rank] if m.training else None
            )
    else:
        convert_sync_batchnorm(model)  # timm's, which knows its own norms with an activation
    if context.shard:
        _shard([model, *task.followers()], context)


def _shard(models: Iterable[nn.Module], context: RunContext) -> None:
    """Keep a shard of every weight in each process (FSDP2, a unit per encoder block)."""
    if context.dtype is torch.float16:
        raise ValueError("runtime.shard: fsdp works in float32 and bfloat16; set runtime.precision")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(context.device.type, (context.world,))
    for model in models:
        for unit in [*_blocks(model), model]:
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def parallel_losses(task: Task, context: RunContext) -> Losses:
    """The task's losses; gradients of ``loss/total`` are means over processes."""

    def losses(step: int, batch: Any) -> dict[str, Tensor]:
        with context.autocast():
            return task.losses(step, batch)

    if context.world == 1:
        return losses
    for part in task.components().values():
        if isinstance(part, torch.optim.Optimizer):  # the discriminator's
            part.register_step_pre_hook(_average_gradients)
    if context.shard:  # FSDP averages by itself
        return losses
    # Of channels-last convolutions; DistributedDataParallel copies their gradients.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(_Losses(task.trained, losses), find_unused_parameters=True)


def full_model(model: Any, context: RunContext) -> Any:
    """``model`` itself, or a copy with all weights, in every process, if it is sharded."""
    if not _is_sharded(model):
        return model
    if isinstance(model, Segmenter):
        copy: Any = create_model(model.name, **model.arguments)
    else:
        copy = type(model)(**model.arguments)
    copy.to(context.device).load_state_dict(_FullState(model).state_dict())
    return copy.eval()


def full_states(components: Mapping[str, Stateful]) -> dict[str, Stateful]:
    """The components; sharded ones have full states, which every process must ask for together."""
    return {name: _FullState(part) if _is_sharded(part) else part for name, part in components.items()}


def sample_for_full_batch(model: nn.Module) -> None:
    """Let stochastic depth and channel dropout sample as for the full batch, whatever it is split into."""
    for module in model.modules():
        for plain, full in ((DropPath, _FullDropPath), (nn.Dropout2d, _FullDropout2d)):
            if type(module) is plain:
                module.__class__ = full


class _Losses(nn.Module):
    """Losses as the forward pass of a module; ``loss/total`` alone has gradients."""

    def __init__(self, trained: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.trained, self._losses = trained, losses

    def forward(self, step: int, batch: Any) -> dict[str, Tensor]:
        values = self._losses(step, batch)
        return {k: v if k == "loss/total" else v.detach() for k, v in values.items()}


class _FullDropPath(DropPath):
    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        kept = rows(lambda n: x.new_empty((n,) + (1,) * (x.ndim - 1)).bernoulli_(keep), len(x))
        return x * (kept / keep if keep > 0 and self.scale_by_keep else kept)


class _FullDropout2d(nn.Dropout2d):
    def forward(self, input: Tensor) -> Tensor:
        if self.p in (0.0, 1.0) or not self.training:
            return F.dropout2d(input, self.p, self.training)
        kept = rows(lambda n: input.new_empty(n, input.shape[1], 1, 1).bernoulli_(1 - self.p), len(input))
        return input * (kept / (1 - self.p))


class _FullBatch(torch.autograd.Function):
    """The images of all processes, for norms on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class _FullState:
    """State of a sharded module or optimiser as one process would have it."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.tensor import DTensor

        full: dict[str, Any] = tree_map_only(
            DTensor, lambda t: t.full_tensor().cpu(), self._part.state_dict()
        )
        return full

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self._part, nn.Module):
            own = self._part.state_dict()
            self._part.load_state_dict({k: _sharded_as(own.get(k), v) for k, v in state_dict.items()})
            return
        parameters = [p for group in self._part.param_groups for p in group["params"]]
        states = {
            i: {k: _sharded_as(parameters[i], v) for k, v in state.items()}
            for i, state in state_dict["state"].items()
        }
        self._part.load_state_dict({**state_dict, "state": states})


def _sharded_as(like: Any, value: Any) -> Any:
    """This process's shard of ``value``, where ``like`` is sharded and has its shape."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    # Every process has read the full tensor: nothing needs to be sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _is_sharded(part: Any) -> bool:
    parameters: Iterable[Any] = ()
    if isinstance(part, nn.Module):
        parameters = part.parameters()
    elif isinstance(part, torch.optim.Optimizer):
        parameters = (p for group in part.param_groups for p in group["params"])
    return any(hasattr(p, "full_tensor") for p in parameters)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Transformer blocks: what timm's networks and ours keep in the encoder under ``block...``."""
    # Not the decoder's: one that gives a view of its tensor would lose FSDP's hook to what follows in place.
    for name, module in getattr(model, "encoder", model).named_modules():
        if name.rpartition(".")[2].startswith("block") and isinstance(module, nn.ModuleList | nn.Sequential):
            yield from module.children()


def _average_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
