"""Weights in parts: each process keeps one of every tensor (FSDP2), for models too large for one GPU.

A block of the encoder is gathered when it computes and let go afterwards; gradients come back as means over
processes, in parts. What is saved is always whole, the same as without: resume points and models do not tell
how they were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panoda.engine.resume_points import Stateful
from panoda.models.core.registry import create_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.context import RunContext

Averaging = Callable[[Any, Any, Any], None]


def shard(model: nn.Module, context: RunContext) -> None:
    """Keep a part of ``model`` here and the others in the other processes, if ``context`` says so.

    To be done before an optimiser is built over the parameters, which are replaced.

    Raises:
        ValueError: float16, whose gradient scaling knows no parts.
    """
    if not context.shard or context.world == 1:
        return
    if context.dtype is torch.float16:
        raise ValueError("runtime.shard: fsdp works in float32 and bfloat16; set runtime.precision")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(context.device.type, (context.world,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def whole(model: Segmenter, context: RunContext) -> Segmenter:
    """``model`` itself if it is whole, else a copy with all weights, in every process."""
    if not is_sharded(model):
        return model
    copy = create_model(model.name, **model.arguments).to(context.device)
    copy.load_state_dict(_gathered(model.state_dict()))
    return copy.eval()


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds a part of the parameters only."""
    return any(_is_part(p) for p in module.parameters())


def whole_states(components: Mapping[str, Stateful]) -> dict[str, Stateful]:
    """The components, those in parts with states that are whole. Every process must ask for them."""
    return {name: _whole_state(part) for name, part in components.items()}


def over_own_parts(average: Averaging) -> Averaging:
    """An averaging rule of torch's AveragedModel, applied to what this process holds of every tensor."""

    def local(tensors: Sequence[Any]) -> list[Tensor]:
        return [t.to_local() if _is_part(t) else t for t in tensors]

    def run(averaged: Any, current: Any, count: Any) -> None:
        average(local(averaged), local(current), count)

    return run


class WholeModule:
    """State of a module in parts, as if it were whole."""

    def __init__(self, module: nn.Module) -> None:
        """Of ``module``."""
        self._module = module

    def state_dict(self) -> dict[str, Any]:
        """All tensors whole, on the CPU."""
        return _gathered(self._module.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Keep this process's parts of whole tensors."""
        own = self._module.state_dict()
        state = {key: _part(value, own[key]) if key in own else value for key, value in state_dict.items()}
        return self._module.load_state_dict(state)


class WholeOptimizer:
    """State of an optimiser over parameters in parts, as if they were whole."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Of ``optimizer``."""
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """All tensors whole, on the CPU."""
        state = self._optimizer.state_dict()
        return {**state, "state": {i: _gathered(values) for i, values in state["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this process's parts of whole tensors."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        parts = {
            i: {key: _part(value, parameters[i]) for key, value in values.items()}
            for i, values in state_dict["state"].items()
        }
        self._optimizer.load_state_dict({**state_dict, "state": parts})


def take_part(components: Mapping[str, Stateful]) -> None:
    """Hand over this process's parts while the first one asks for the same components' states."""
    for part in components.values():
        if isinstance(part, WholeModule | WholeOptimizer):
            part.state_dict()


def _blocks(model: nn.Module) -> Iterable[nn.Module]:
    """Transformer blocks: what timm's networks and ours keep in the encoder under ``block...``."""
    # Not the decoder's: one that gives a view of its tensor would lose FSDP's hook to what follows in place.
    for name, module in getattr(model, "encoder", model).named_modules():
        if name.rpartition(".")[2].startswith("block") and isinstance(module, nn.ModuleList | nn.Sequential):
            yield from module.children()


def _whole_state(part: Stateful) -> Stateful:
    if isinstance(part, nn.Module) and is_sharded(part):
        return WholeModule(part)
    if isinstance(part, torch.optim.Optimizer):
        parameters = (p for group in part.param_groups for p in group["params"])
        if any(_is_part(p) for p in parameters):
            return WholeOptimizer(part)
    return part


def _is_part(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _gathered(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.full_tensor().cpu() if _is_part(v) else v for k, v in tensors.items()}


def _part(value: Any, like: Tensor) -> Any:
    """The part of ``value`` that this process holds of ``like``; what is no tensor of its shape stays."""
    if not (_is_part(like) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # Every process has read the whole tensor: nothing needs to be sent.
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
