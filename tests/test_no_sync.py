"""A training step reads nothing back from the device and mixes no devices or types: proved without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from imaginary import SIZE, HostWaitsError, ImaginaryDevice
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from panoda.config.scenarios import load_scenario
from panoda.data.loading.loader import Batch
from panoda.methods.alignment import AlignmentTask
from panoda.methods.mpa import MPATask
from panoda.methods.parts.adversarial import Adversary
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.prototypes import PrototypeBank
from panoda.methods.parts.sphere_warp import warp_onto_sphere
from panoda.methods.supervised import SupervisedTask
from panoda.models.core.registry import create_model

CLASSES = 5
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PLACES = [(CPU, None), (GPU, None), (GPU, torch.bfloat16), (GPU, torch.float16)]
SOURCE: Any = SimpleNamespace(projection="pinhole", fov_x_deg=90.0, width=SIZE[1])
TARGET: Any = SimpleNamespace(
    projection="erp", full_circle=True, height=SIZE[0], width=SIZE[1], lat_top_deg=35.0, lat_bottom_deg=-35.0
)
everywhere = pytest.mark.parametrize(
    ("device", "dtype"), PLACES, ids=["cpu", "cuda", "cuda-bfloat16", "cuda-float16"]
)


@pytest.fixture
def place(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> ImaginaryDevice:
    return ImaginaryDevice(device, monkeypatch)


def _batches(step: int) -> Iterator[Batch]:
    raise AssertionError("the batch is given")


def _model() -> Any:
    torch.manual_seed(0)
    return create_model("trans4pass_nano", num_classes=CLASSES)


@everywhere
@pytest.mark.parametrize("scenario", ["city", "cs2dp"])
def test_an_adaptation_step_reads_nothing_back(
    scenario: str, place: ImaginaryDevice, dtype: torch.dtype | None
) -> None:
    """With everything that the recipe of the scenario switches on: teacher, mixing, prototypes, adversary."""
    params = load_scenario(scenario, folder=Path(__file__).parents[1] / "scenarios").adapt
    model = _model()
    params = params.model_copy(update={"erp_warp": 1.0})
    bank = PrototypeBank(
        torch.zeros(CLASSES, model.feature_channels),
        torch.ones(CLASSES, dtype=torch.bool),
        ema_momentum=params.mpa.ema_momentum,
    )
    adversary = Adversary(Discriminator(CLASSES), lr=1e-4) if params.adversarial_weight else None
    task = MPATask(
        model,
        bank,
        _batches,
        _batches,
        params=params,
        weight=place.tensor(torch.ones(CLASSES)),
        adversary=adversary,
        warp=warp_onto_sphere(SOURCE, TARGET, params),
        device=place.device,
    )
    values = place.take_steps(task, (place.batch(), place.batch()), dtype=dtype)
    assert {"loss/total", "loss/mpa_source", "loss/mpa_target", "grad_norm"} <= set(values)
    assert all(isinstance(value, FakeTensor) for value in values.values())


@everywhere
@pytest.mark.parametrize("ohem", [None, (0.7, 0.1)])
def test_a_supervised_step_reads_nothing_back(
    ohem: tuple[float, float] | None, place: ImaginaryDevice, dtype: torch.dtype | None
) -> None:
    task = SupervisedTask(_model(), _batches, weight=None, ohem=ohem, device=place.device)
    values = place.take_steps(task, place.batch(), dtype=dtype)
    assert isinstance(values["loss/total"], FakeTensor)


@everywhere
def test_a_warmup_step_reads_nothing_back(place: ImaginaryDevice, dtype: torch.dtype | None) -> None:
    task = AlignmentTask(
        _model(),
        Adversary(Discriminator(CLASSES), lr=1e-4),
        _batches,
        _batches,
        weight=None,
        adversarial_weight=0.001,
        colour_transfer=0.5,
        device=place.device,
    )
    values = place.take_steps(task, (place.batch(), place.batch()), dtype=dtype)
    assert isinstance(values["loss/discriminator"], FakeTensor)


def _after(task: SupervisedTask, then: Callable[[dict[str, Tensor]], object]) -> SupervisedTask:
    """The task, doing something more with its losses."""
    losses = task.losses

    def more(step: int, batch: Batch) -> dict[str, Tensor]:
        values = losses(step, batch)
        then(values)
        return values

    task.losses = more  # type: ignore[method-assign]
    return task


@pytest.mark.parametrize(
    ("then", "error"),
    [
        (lambda loss: loss > 10 or 1, DataDependentOutputException),
        (lambda loss: loss.cpu(), HostWaitsError),
        (lambda loss: torch.tensor([1.0, 2.0], device=loss.device), HostWaitsError),
        (lambda loss: loss[None] + torch.ones(1), RuntimeError),
        (lambda loss: loss[None] @ loss[None].half(), RuntimeError),
    ],
    ids=["reads", "fetches", "sends", "mixes devices", "mixes types"],
)
@pytest.mark.parametrize("device", [GPU], ids=["cuda"])
def test_the_proof_can_fail(
    then: Callable[[Tensor], object], error: type[Exception], place: ImaginaryDevice
) -> None:
    task = SupervisedTask(_model(), _batches, weight=None, ohem=None, device=place.device)
    losses = task.losses

    def more(step: int, batch: Batch) -> dict[str, Tensor]:
        values = losses(step, batch)
        then(values["loss/total"])
        return values

    task.losses = more
    with pytest.raises(error):
        place.take_steps(task, place.batch())
