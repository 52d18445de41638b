"""Whole stages on a stand-in for a GPU (``standin``): they train, resume, evaluate and predict there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_data import prepared
from standin import GPU, GpuTensor, standin_gpu
from torch import nn
from two_processes import pretrain_on_standin

from panoda.config import (
    AugmentParams,
    EvaluateParams,
    ModelParams,
    OptimParams,
    PrototypeParams,
    PseudoLabelParams,
)
from panoda.deployment.predict import predict_files
from panoda.engine.launch import launch
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy
from panoda.engine.optim import build_optimizer
from panoda.engine.step import Stepper
from panoda.methods.alignment import AlignmentParams
from panoda.methods.mpa import MPAParams, PrototypeLossParams, TeacherParams
from panoda.methods.parts.prototype_sums import _from_level
from panoda.methods.supervised import OhemParams, SupervisedParams, SwaParams
from panoda.models import create_model
from panoda.models.core.checkpoint import load_model
from panoda.stages.adapt import adapt
from panoda.stages.evaluate import evaluate
from panoda.stages.pretrain import pretrain
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.stages.warmup import warmup
from panoda.system.context import RunContext, resolve_device

ROOT = Path(__file__).resolve().parents[1]
OPTIM = OptimParams(lr=2e-3, clip_norm=5.0)
PRETRAIN = SupervisedParams(iterations=4, batch_size=2, optim=OPTIM, validate_every=4)
ADAPT = MPAParams(
    iterations=2,
    batch_size=2,
    optim=OptimParams(lr=5e-4),
    augment_target=AugmentParams(yaw_roll=True, jitter=0.2),
    mpa=PrototypeLossParams(weight=0.01, ema_momentum=0.5, refresh_every=2),
    teacher=TeacherParams(enabled=True),
    class_colour_transfer=0.5,
    adversarial_weight=0.01,
)


@dataclass(frozen=True)
class Data:
    source: Path
    target: Path

    @property
    def train(self) -> dict[str, Path]:
        return {"source_train": self.source / "train", "target_train": self.target / "train"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("standin")
    source = prepared(root / "source", {"train": 4, "val": 2}, erp=False)
    return Data(source, prepared(root / "target", {"train": 2, "test": 2}, erp=True, shade=25))


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with standin_gpu() as device:
        yield device


def _pretrain(data: Data, out: Path, context: RunContext, **changes: Any) -> dict[str, float]:
    return pretrain(
        source_train=data.source / "train",
        source_val=data.source / "val",
        out=out,
        model=ModelParams(),
        params=PRETRAIN.model_copy(update=changes),
        seed=0,
        context=context,
    )


def _run(data: Data, out: Path, context: RunContext, *, erp_warp: float) -> dict[str, float]:
    """All stages, each switch on that has to do with devices; returns what evaluate does."""
    swa = SwaParams(start=0.5, every=1, bn_update_batches=1)
    _pretrain(data, out / "pretrain", context, ohem=OhemParams(), swa=swa)
    common = {"checkpoint": out / "pretrain" / "model.safetensors", "context": context}
    warmed = AlignmentParams(iterations=1, batch_size=2, optim=OPTIM, accumulate=2)
    warmup(**common, **data.train, out=out / "warmup", params=warmed, seed=0)
    labelled = PseudoLabelParams(scales=(1.0, 0.5), flip=True, prototype_sums=True)
    labels = out / "pseudo_labels"
    pseudo_labels(**common, target_train=data.train["target_train"], out=labels, params=labelled)
    means = PrototypeParams(scales=(1.0,))
    prototypes(**common, **data.train, pseudo_labels=labels, out=out / "prototypes", params=means)
    given = {"pseudo_labels": labels, "prototypes": out / "prototypes"}
    params = ADAPT.model_copy(update={"erp_warp": erp_warp})
    adapt(**common, **data.train, **given, out=out / "adapt", params=params, seed=0)
    models = {"source": common["checkpoint"], "adapt": out / "adapt" / "model.safetensors"}
    return evaluate(
        models=models,
        source_val=data.source / "val",
        target_test=data.target / "test",
        out=out / "evaluate",
        params=EvaluateParams(scales=(1.0,)),
        context=context,
    )


def test_a_run_in_float32_gives_the_numbers_of_the_cpu(data: Data, tmp_path: Path) -> None:
    expected = _run(data, tmp_path / "cpu", RunContext(), erp_warp=0.0)
    with standin_gpu():
        found = _run(data, tmp_path / "gpu", RunContext(device=resolve_device("auto")), erp_warp=0.0)
    assert found.keys() == expected.keys()
    for name in ("miou/target_test", "mean_confidence/target_test"):
        assert found[name] == pytest.approx(expected[name], abs=0.03)
    for stage in ("pretrain", "warmup", "adapt"):
        first = [pd.read_csv(tmp_path / place / stage / "history.csv").iloc[0] for place in ("cpu", "gpu")]
        for name in first[0].filter(like="loss/").index:
            tolerance = 2e-4 if stage == "pretrain" else 0.02  # the others begin where pretrain ended
            assert first[1][name] == pytest.approx(first[0][name], rel=tolerance), (stage, name)


def test_a_run_in_bfloat16_and_deterministic_mode_on_the_second_gpu(data: Data, tmp_path: Path) -> None:
    """Which is not the current one: what is made on "cuda" lies on the first."""
    with standin_gpu(1) as gpu, _deterministic():
        metrics = _run(data, tmp_path / "out", RunContext(device=gpu, dtype=torch.bfloat16), erp_warp=1.0)
    assert metrics["pixel_accuracy/target_test"] > 0.0
    for stage in ("pretrain", "warmup", "adapt"):
        history = pd.read_csv(tmp_path / "out" / stage / "history.csv")
        assert history["loss/total"].between(0.0, 10.0).all()


def test_a_killed_run_in_float16_resumes_on_the_gpu(
    data: Data, gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: momenta and gradient scale came back."""
    _pretrain(data, tmp_path / "whole", RunContext(device=gpu, dtype=torch.float16))
    context = RunContext(device=gpu, dtype=torch.float16, state_dir=tmp_path / "state", checkpoint_every=2)
    with monkeypatch.context() as patch:
        _dies_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            _pretrain(data, tmp_path / "out", context)
    _pretrain(data, tmp_path / "out", context)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_first_step_that_overflows_leaves_nothing_behind(name: Any, gpu: torch.device) -> None:
    """In float16 it mostly does; torch's fused SGD alone would keep momenta that nobody wrote."""
    torch.manual_seed(0)
    there, here = nn.Linear(3, 2).to(gpu), nn.Linear(3, 2)
    here.load_state_dict(there.state_dict())
    keywords: dict[str, Any] = {"name": name, "lr": 0.1, "weight_decay": 0.01}
    fused, plain = build_optimizer(there, **keywords), build_optimizer(here, **keywords)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0)
    with _deterministic():  # fills memory that is not initialised with NaN
        for gradient in (float("inf"), 1.0, 0.5):
            for layer in (there, here):
                for parameter in layer.parameters():
                    parameter.grad = torch.full_like(parameter, gradient)
            scaler.scale(torch.zeros((), device=gpu))
            for parameter in there.parameters():
                parameter.grad *= scaler.get_scale()
            scaler.step(fused)
            scaler.update()
            if gradient < float("inf"):
                plain.step()
    for own, expected in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(own.detach().cpu(), expected.detach())


@pytest.mark.parametrize("to_gpu", [True, False])
def test_a_run_goes_on_where_there_is_no_gpu_and_back(
    to_gpu: bool, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords: dict[str, Any] = {"state_dir": tmp_path / "state", "log_every": 1, "checkpoint_every": 2}
    places = [RunContext(**keywords), RunContext(device=GPU, **keywords)]
    before, after = places if to_gpu else places[::-1]
    with monkeypatch.context() as patch, standin_gpu():
        _dies_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            _pretrain(data, tmp_path / "out", before)
    with standin_gpu():
        _pretrain(data, tmp_path / "out", after)
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history["step"]) == [1, 2, 3, 4]


def _dies_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Stepper.__call__

    def dying(stepper: Stepper, number: int, batch: Any) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return original(stepper, number, batch)

    monkeypatch.setattr(Stepper, "__call__", dying)


def test_two_processes_with_a_gpu_each_train_as_one_on_the_cpu(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norms are torch's own for several GPUs here; on CPUs they never are."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    pretrain_on_standin(source=data.source, out=tmp_path / "one", context=RunContext())
    launch(pretrain_on_standin, {"source": data.source, "out": tmp_path / "two"}, RunContext(devices=2))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)


def test_prediction_of_files_from_a_model_on_the_gpu(data: Data, gpu: torch.device, tmp_path: Path) -> None:
    _pretrain(data, tmp_path / "model", RunContext(device=gpu), iterations=1)
    checkpoint = tmp_path / "model" / "model.safetensors"
    images = sorted((data.target.parent / "raw").glob("test-?.png"))
    found = predict_files(
        checkpoint, images, tmp_path / "out", height=32, sliding=(32, 21), device=gpu, dtype=torch.bfloat16
    )
    assert len(found.labels) == 2 and not found.failures
    model, _ = load_model(checkpoint, device=gpu)
    assert all(isinstance(p, GpuTensor) for p in model.parameters())


def test_deterministic_mode_has_a_way_for_the_loss(gpu: torch.device) -> None:
    logits, label = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    weight = torch.rand(5)
    leaf = logits.to(gpu).requires_grad_()
    with _deterministic():
        loss = cross_entropy(leaf, label.to(gpu), weight.to(gpu), label_smoothing=0.1)
        loss.backward()
    expected = cross_entropy(logits.requires_grad_(), label, weight, label_smoothing=0.1)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.cpu(), logits.grad)


@pytest.mark.parametrize("shape", [(3, 9), (3, 9, 4)])
def test_deterministic_mode_has_a_way_to_sum_over_levels(shape: tuple[int, ...], gpu: torch.device) -> None:
    values = torch.rand(shape)
    with _deterministic():
        found = _from_level(values.to(gpu))
    assert found.dtype is torch.float64
    torch.testing.assert_close(found.cpu(), _from_level(values))


@pytest.mark.parametrize("decoder", ["dmlp", "dmlpv2", "segformer", "upernet", "fcn"])
def test_every_decoder_has_a_deterministic_way(decoder: str, gpu: torch.device) -> None:
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", decoder=decoder, num_classes=3).to(gpu)
    label = torch.zeros(2, 32, 64, dtype=torch.int64, device=gpu)
    with _deterministic():
        logits, _, auxiliary = model(torch.rand(2, 3, 32, 64, device=gpu), return_auxiliary=True)
        (cross_entropy(logits, label) + auxiliary_cross_entropy(auxiliary, label)).backward()
    assert all(p.grad is not None for p in model.parameters())


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_stand_in_refuses_what_a_gpu_refuses(gpu: torch.device) -> None:
    there = torch.ones(3, 4, device=gpu)
    for mistake in (
        lambda: there + torch.ones(4),
        lambda: torch.ones(3, 4)[there > 0],
        lambda: nn.Linear(4, 5)(there),
        lambda: torch.cat([there[0], torch.ones(1)]),
        lambda: torch.ones(3, 4).add_(there),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mistake()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=gpu, generator=torch.Generator())
    with standin_gpu(1) as second, pytest.raises(RuntimeError, match="several GPUs"):
        torch.ones(4, device=second) + torch.ones(4, device="cuda")
    assert float((there + torch.tensor(1.0)).sum()) == 24.0


def test_the_stand_ins_gradients_are_torchs(gpu: torch.device) -> None:
    """Accumulated, through views, shared parts, broadcasts and a change in place."""

    def loss(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        first = layer(x)
        twice = layer(first.relu())[:, ::2] * first[:, :1]
        out = torch.cat([first, twice], dim=1).clone()
        out[0, 1:3] *= 3
        return out.square().mean()

    torch.manual_seed(0)
    here, x = nn.Linear(4, 4), torch.randn(3, 4)
    there = nn.Linear(4, 4).to(gpu)
    there.load_state_dict(here.state_dict())
    for _ in range(2):
        loss(there, x.to(gpu)).backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "_engine_run_backward", torch.autograd.graph._engine_run_backward)
        for _ in range(2):
            loss(here, x).backward()
    for own, expected in zip(there.parameters(), here.parameters(), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad.cpu(), expected.grad)
