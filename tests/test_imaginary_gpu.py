"""An imagined GPU: types and devices go together, and a training step reads nothing back from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from imaginary import SIZE, HostWaitsError, ImaginaryDevice
from test_pairs import PAIRS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from panoda.config.scenarios import load_scenario
from panoda.inference.prediction import predict_features, predict_logits
from panoda.methods.alignment import AlignmentTask
from panoda.methods.mpa import MPATask
from panoda.methods.parts.adversarial import Adversary
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.prototypes import PrototypeBank
from panoda.methods.parts.sphere_warp import warp_onto_sphere
from panoda.methods.supervised import SupervisedTask
from panoda.methods.teacher_mix import TeacherMixTask
from panoda.models import create_model

CLASSES = 5
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OFFSETS = r"offset|modulator|blocks\.\d\.mlp\d?\.(depthwise|pointwise)"
TYPES = pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
PLACES = [(CPU, None), (GPU, None), (GPU, torch.bfloat16), (GPU, torch.float16)]
SOURCE: Any = SimpleNamespace(projection="pinhole", fov_x_deg=90.0, width=SIZE[1])
TARGET: Any = SimpleNamespace(
    projection="erp", full_circle=True, height=SIZE[0], width=SIZE[1], lat_top_deg=35.0, lat_bottom_deg=-35.0
)
everywhere = pytest.mark.parametrize(("device", "dtype"), PLACES, ids=str)


@pytest.fixture
def device() -> torch.device:
    return GPU


@pytest.fixture
def place(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> ImaginaryDevice:
    return ImaginaryDevice(device, monkeypatch)


def _model() -> Any:
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=CLASSES)
    model.colours = ((50.0, 0.0, 0.0), (20.0, 5.0, 5.0))
    return model


@everywhere
@pytest.mark.parametrize("scenario", ["city", "cs2dp"])
def test_an_adaptation_step_reads_nothing_back(
    scenario: str, place: ImaginaryDevice, dtype: torch.dtype | None
) -> None:
    """With everything that the method of the scenario has: teacher and mixing, or prototypes and adversary."""
    params = load_scenario(scenario, folder=Path(__file__).parents[1] / "scenarios").adapt
    model = _model()
    common = {"params": params, "weight": place.tensor(torch.ones(CLASSES)), "device": place.device}
    if params.method == "teacher_mix":
        task, terms = (
            TeacherMixTask(model, None, None, warp=warp_onto_sphere(SOURCE, TARGET), **common),
            set(),
        )
    else:
        means = torch.zeros(CLASSES, model.feature_channels)
        bank = PrototypeBank(means, torch.ones(CLASSES, dtype=torch.bool), ema_momentum=0.5)
        task = MPATask(
            model, bank, None, None, adversary=Adversary(Discriminator(CLASSES), lr=1e-4), **common
        )
        terms = {"loss/mpa_source", "loss/mpa_target"}
    values = place.take_steps(task, (place.batch(), place.batch()), dtype=dtype)
    assert {"loss/total", "loss/target_ce", "grad_norm", *terms} <= set(values)
    assert all(isinstance(value, FakeTensor) for value in values.values())


@everywhere
@pytest.mark.parametrize("ohem", [None, (0.7, 0.1)])
def test_a_supervised_step_reads_nothing_back(
    ohem: tuple[float, float] | None, place: ImaginaryDevice, dtype: torch.dtype | None
) -> None:
    task = SupervisedTask(_model(), None, weight=None, ohem=ohem, device=place.device)
    values = place.take_steps(task, place.batch(), dtype=dtype)
    assert isinstance(values["loss/total"], FakeTensor)


@everywhere
def test_a_warmup_step_reads_nothing_back(place: ImaginaryDevice, dtype: torch.dtype | None) -> None:
    task = AlignmentTask(
        _model(),
        Adversary(Discriminator(CLASSES), lr=1e-4),
        None,
        None,
        weight=None,
        adversarial_weight=0.001,
        colour_transfer=0.5,
        device=place.device,
    )
    values = place.take_steps(task, (place.batch(), place.batch()), dtype=dtype)
    assert isinstance(values["loss/discriminator"], FakeTensor)


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
def test_the_proof_can_fail(
    then: Callable[[Tensor], object], error: type[Exception], place: ImaginaryDevice
) -> None:
    task = SupervisedTask(_model(), None, weight=None, ohem=None, device=place.device)
    losses = task.losses
    task.losses = lambda step, batch: then(losses(step, batch)["loss/total"])
    with pytest.raises(error):
        place.take_steps(task, place.batch())


@TYPES
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_every_pair_predicts_on_a_gpu(
    encoder: str, decoder: str, dtype: torch.dtype | None, place: ImaginaryDevice
) -> None:
    model = create_model(encoder, decoder=decoder, num_classes=5)
    place.module(model)
    images = place.tensor(torch.zeros(1, 3, 64, 128, dtype=torch.uint8))
    with place.active():
        for wrap in (True, False):
            logits, features = predict_features(model, images, scales=(0.5, 1.0), wrap=wrap, dtype=dtype)
            assert logits.shape == (1, 5, 64, 128) and logits.dtype == features.dtype == torch.float32
            assert logits.device == features.device == GPU
        model.train()
        products: dict[str, torch.dtype] = {}
        for name, part in model.named_modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.register_forward_hook(lambda _, __, out, name=name: products.update({name: out.dtype}))
        with torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
            logits, features, extra = model(images.float(), return_auxiliary=True)
        assert all(x.device == GPU for x in (logits, features, *(value for _, value in extra)))
        odd = {name for name, found in products.items() if found != (dtype or torch.float32)}
        # Offsets and modulators are computed in float32 on purpose.
        assert products and not {n for n in odd if not re.search(OFFSETS, n)}


@TYPES
@pytest.mark.parametrize("sliding", [None, (48, 32)])
def test_mirrored_and_sliding_predictions_on_a_gpu(
    sliding: tuple[int, int] | None, dtype: torch.dtype | None, place: ImaginaryDevice
) -> None:
    model = _model()
    place.module(model)
    images = place.tensor(torch.zeros(2, 3, 64, 128, dtype=torch.uint8))
    with place.active():
        logits = predict_logits(
            model, images, scales=(0.75, 1.0), flip=True, wrap=True, dtype=dtype, sliding=sliding
        )
    assert logits.shape == (2, 5, 64, 128) and logits.device == GPU and logits.dtype == torch.float32
