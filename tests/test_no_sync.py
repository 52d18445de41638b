"""No step reads a value back from the device: proved without one.

The tensors of model, prototypes and batch are fakes, which have a size and a type and no values. Whatever
would make the host wait for a device (``item``, ``bool``, ``tolist``, indexing by mask) raises an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from panoda.adaptation.adversarial import Adversary
from panoda.adaptation.prototypes import PrototypeBank
from panoda.config import load_params
from panoda.data.loader import Batch
from panoda.models.discriminator import Discriminator
from panoda.models.registry import create_model
from panoda.training.alignment import AlignmentTask
from panoda.training.context import RunContext
from panoda.training.distributed import Team
from panoda.training.guard import StepGuard
from panoda.training.optim import build_optimizer
from panoda.training.self_training import SelfTrainingTask
from panoda.training.spikes import LossSpikes
from panoda.training.step import Stepper
from panoda.training.supervised import SupervisedTask

CLASSES, SIZE = 5, (32, 64)
CPU = torch.device("cpu")
ON_THE_HOST = {"n_averaged"}
"""Counts of torch's AveragedModel, which makes it there and leaves it there."""


class _HostIsReal(TorchDispatchMode):
    """What the host draws and decides by itself (no fake takes part) is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs or {}))):
            return func(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return func(*args, **(kwargs or {}))


class _Device:
    """An imaginary device: what is moved to it has no values."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def tensor(self, value: Tensor) -> Tensor:
        return self.mode.from_tensor(value)

    def module(self, module: nn.Module) -> None:
        for part in module.modules():
            for name, value in list(part._parameters.items()):
                if value is not None:
                    fake = nn.Parameter(self.tensor(value.detach()), requires_grad=value.requires_grad)
                    part._parameters[name] = fake
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and name not in ON_THE_HOST:
                    part._buffers[name] = self.tensor(buffer)

    def batch(self) -> Batch:
        return Batch(
            image=self.tensor(torch.zeros(2, 3, *SIZE, dtype=torch.uint8)),
            label=self.tensor(torch.zeros(2, *SIZE, dtype=torch.int64)),
            valid=self.tensor(torch.ones(2, *SIZE, dtype=torch.bool)),
            ids=["a", "b"],
            indices=torch.arange(2),
        )


def _take_steps(device: _Device, task: Any, batch: Any) -> dict[str, Tensor]:
    """Two steps as the training loop takes them; returns the values of the last."""
    for part in task.components().values():
        if isinstance(part, nn.Module):
            device.module(part)
    context = RunContext(device=CPU, dtype=None)
    with device.mode, _HostIsReal():
        optimizer = build_optimizer(task.trained, name="adamw", lr=0.01, weight_decay=0.1)
        if getattr(task, "adversary", None) is not None:
            task.adversary.optimizer = torch.optim.Adam(task.adversary.discriminator.parameters())
        # As on a GPU: values are looked at later, together.
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        guard = StepGuard(lag=True, scaler=scaler, spikes=LossSpikes())
        take = Stepper(
            task, optimizer, scaler, Team(context), guard, context, seed=0, clip_norm=1.0, name="pretrain"
        )
        take(0, batch)
        return take(1, batch)


def _batches(step: int) -> Iterator[Batch]:
    raise AssertionError("the batch is given")


def _model() -> Any:
    torch.manual_seed(0)
    return create_model("trans4pass_nano", num_classes=CLASSES)


@pytest.mark.parametrize("scenario", ["city", "cs2dp"])
def test_an_adaptation_step_reads_nothing_back(scenario: str) -> None:
    """With everything that the recipe of the scenario switches on: teacher, mixing, prototypes, adversary."""
    params = load_params(Path(__file__).parents[1] / "scenarios" / f"{scenario}.yaml").adapt
    device, model = _Device(), _model()
    bank = PrototypeBank(
        torch.zeros(CLASSES, model.feature_channels),
        torch.ones(CLASSES, dtype=torch.bool),
        ema_momentum=params.mpa.ema_momentum,
    )
    adversary = Adversary(Discriminator(CLASSES), lr=1e-4) if params.adversarial_weight else None
    task = SelfTrainingTask(
        model,
        bank,
        _batches,
        _batches,
        params=params,
        weight=device.tensor(torch.ones(CLASSES)),
        adversary=adversary,
        warp=None,
        device=CPU,
    )
    values = _take_steps(device, task, (device.batch(), device.batch()))
    assert {"loss/total", "loss/mpa_source", "loss/mpa_target", "grad_norm"} <= set(values)
    assert all(isinstance(value, FakeTensor) for value in values.values())


@pytest.mark.parametrize("ohem", [None, (0.7, 0.1)])
def test_a_supervised_step_reads_nothing_back(ohem: tuple[float, float] | None) -> None:
    device = _Device()
    task = SupervisedTask(_model(), _batches, weight=None, ohem=ohem, device=CPU)
    values = _take_steps(device, task, device.batch())
    assert isinstance(values["loss/total"], FakeTensor)


def test_a_warmup_step_reads_nothing_back() -> None:
    device = _Device()
    task = AlignmentTask(
        _model(),
        Adversary(Discriminator(CLASSES), lr=1e-4),
        _batches,
        _batches,
        weight=None,
        adversarial_weight=0.001,
        colour_transfer=0.5,
        device=CPU,
    )
    values = _take_steps(device, task, (device.batch(), device.batch()))
    assert isinstance(values["loss/discriminator"], FakeTensor)


def test_the_proof_can_fail() -> None:
    class Reads(SupervisedTask):
        def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
            values = super().losses(step, batch)
            if values["loss/total"] > 10:
                raise RuntimeError("diverged")
            return values

    device = _Device()
    with pytest.raises(DataDependentOutputException):
        _take_steps(device, Reads(_model(), _batches, weight=None, ohem=None, device=CPU), device.batch())
