"""An imaginary device: tensors that have a size, a type and a place, and no values.

What would make a host wait for a device (``item``, ``bool``, ``tolist``, indexing by mask) raises an error
here, and so does mixing devices or types that do not go together. ``cuda`` is imagined where there is none:
autocast is that of a GPU, branches on ``is_cuda`` are taken. Only autograd's backward pass needs a real one;
gradients of the right shapes come in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from panoda.data.loading.loader import Batch
from panoda.engine.guard import StepGuard
from panoda.engine.optim import build_optimizer
from panoda.engine.spikes import LossSpikes
from panoda.engine.step import Stepper
from panoda.system.context import RunContext

SIZE = (32, 64)
ON_THE_HOST = {"n_averaged"}
"""Counts of torch's AveragedModel, which makes it there and leaves it there."""


class ImaginaryDevice:
    """What is moved to it has no values; tensors say of themselves that they are on ``device``."""

    def __init__(self, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        if device.type == "cuda":
            if torch.version.cuda is None:
                pytest.skip("torch is built without CUDA")
            monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)

    def tensor(self, value: Tensor) -> Tensor:
        """Its double there."""
        with self.mode:
            return torch.empty(value.shape, dtype=value.dtype, device=self.device)

    def module(self, module: nn.Module) -> None:
        """Move a module there."""
        for part in module.modules():
            for name, value in list(part._parameters.items()):
                if value is not None:
                    fake = nn.Parameter(self.tensor(value.detach()), requires_grad=value.requires_grad)
                    part._parameters[name] = fake
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and name not in ON_THE_HOST:
                    part._buffers[name] = self.tensor(buffer)

    def batch(self) -> Batch:
        """Two labelled images."""
        return Batch(
            image=self.tensor(torch.zeros(2, 3, *SIZE, dtype=torch.uint8)),
            label=self.tensor(torch.zeros(2, *SIZE, dtype=torch.int64)),
            valid=self.tensor(torch.ones(2, *SIZE, dtype=torch.bool)),
            ids=["a", "b"],
            indices=torch.arange(2),
            # Made by the loader: on the host.
            rows=torch.arange(SIZE[0]).expand(2, -1) + 0.5,
            columns=torch.arange(SIZE[1]).expand(2, -1) + 0.5,
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute with what is there; what the host draws and decides by itself is computed for real."""
        with self.mode, _HostIsReal():
            yield

    def take_steps(self, task: Any, batch: Any, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Two steps as the training loop takes them; returns the values of the last."""
        modules = [part for part in task.components().values() if isinstance(part, nn.Module)]
        for module in modules:
            self.module(module)
        context = RunContext(device=self.device, dtype=dtype)
        with self.active(), pytest.MonkeyPatch.context() as patch:
            if self.device.type == "cuda":
                patch.setattr(Tensor, "backward", lambda loss, **_: _fill_gradients(modules))
            optimizer = build_optimizer(task.trained, name="adamw", lr=0.01, weight_decay=0.1)
            if getattr(task, "adversary", None) is not None:
                task.adversary.optimizer = torch.optim.Adam(task.adversary.discriminator.parameters())
            scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
            # As on a GPU: values are looked at later, together.
            guard = StepGuard(lag=True, scaler=scaler, spikes=LossSpikes())
            take = Stepper(task, optimizer, scaler, guard, context, seed=0, clip_norm=1.0, name="pretrain")
            take(0, batch)
            return take(1, batch)


class HostWaitsError(AssertionError):
    """A copy between host and device for which the host waits."""


def _refuse_to_wait(func: Any, args: Any, kwargs: Any) -> None:
    if func is torch.ops.aten._to_copy.default:
        source, place = _type(args[0]), kwargs.get("device")
        target = source if place is None else torch.device(place).type
        waits = not kwargs.get("non_blocking", False)
    elif func is torch.ops.aten.copy_.default:
        target, source = _type(args[0]), _type(args[1])
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    else:
        return
    if source != target and waits:
        raise HostWaitsError(f"the host waits for a copy from {source} to {target}")


def _type(value: Tensor) -> str:
    return (value.fake_device if isinstance(value, FakeTensor) else value.device).type


class _HostIsReal(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        _refuse_to_wait(func, args, kwargs or {})
        moves = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if moves or any(isinstance(leaf, FakeTensor) for leaf in leaves):
            return func(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return func(*args, **(kwargs or {}))


def _fill_gradients(modules: list[nn.Module]) -> None:
    for parameter in (p for module in modules for p in module.parameters() if p.requires_grad):
        parameter.grad = torch.empty_like(parameter)
