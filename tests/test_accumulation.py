"""Micro-batches give the gradient of the whole batch; without memory there are more of them, or a message."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_loop import _run, _Task
from torch import Tensor, nn

from panoda.config import AugmentParams, OptimParams
from panoda.engine.accumulation import split
from panoda.engine.failures import NotDeterministic, OutOfMemory, is_out_of_memory
from panoda.engine.guard import StepGuard
from panoda.engine.spikes import LossSpikes
from panoda.engine.step import Stepper
from panoda.methods.alignment import AlignmentTask
from panoda.methods.mpa import MPAParams, MPATask, PrototypeLossParams
from panoda.methods.parts.adversarial import Adversary
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.prototypes import PrototypeBank
from panoda.methods.supervised import SupervisedParams, SupervisedTask
from panoda.methods.teacher_mix import TeacherMixParams, TeacherMixTask
from panoda.models import create_model
from panoda.system.context import RunContext, set_deterministic

K, B, H, W = 5, 4, 32, 64
CPU = torch.device("cpu")
WEIGHT = torch.linspace(0.5, 2.0, K)


def _batch(seed: int) -> dict[str, Any]:
    """Samples with very different numbers of labelled pixels; one has none."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(K, (B, H, W), generator=random)
    label[0, : H // 2], label[1], label[3, :, 5:] = 255, 255, 255
    return {
        "image": torch.randint(256, (B, 3, H, W), generator=random, dtype=torch.uint8),
        "label": label,
        "valid": torch.rand(B, H, W, generator=random) < torch.tensor([0.1, 0.5, 0.9, 1.0]).view(B, 1, 1),
        "ids": [f"{seed}-{i}" for i in range(B)],
        "indices": torch.arange(B),
    }


def _model() -> nn.Module:
    """Batch norms keep their statistics, so that images do not depend on each other; depth is stochastic."""
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=K, drop_path=0.3).train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return model


def _adversary() -> Adversary:
    """With SGD: Adam makes whole steps of gradients that are rounding noise."""
    torch.manual_seed(1)
    adversary = Adversary(Discriminator(K), lr=1e-3)
    adversary.optimizer = torch.optim.SGD(adversary.discriminator.parameters(), lr=0.1)
    return adversary


def _supervised(**options: Any) -> SupervisedTask:
    return SupervisedTask(_model(), None, **{"weight": WEIGHT, "ohem": None, "device": CPU, **options})


def _alignment() -> AlignmentTask:
    options = {"adversarial_weight": 0.1, "colour_transfer": 0.5}
    return AlignmentTask(_model(), _adversary(), None, None, weight=WEIGHT, device=CPU, **options)


def _mpa(normaliser: str) -> MPATask:
    model = _model()
    random = torch.Generator().manual_seed(2)
    mean = torch.randn(K, model.feature_channels, generator=random)
    params = MPAParams(
        iterations=2,
        batch_size=B,
        optim=OptimParams(lr=0.1),
        mpa=PrototypeLossParams(weight=0.1, normaliser=normaliser, refresh_every=1, ema_momentum=0.5),
        adversarial_weight=0.1,
    )
    bank = PrototypeBank(mean, torch.tensor([True] * (K - 1) + [False]), ema_momentum=0.5)
    common = {"params": params, "weight": WEIGHT, "adversary": _adversary(), "device": CPU}
    return MPATask(model, bank, None, None, **common)


def _teacher_mix() -> TeacherMixTask:
    params = TeacherMixParams(
        iterations=2,
        batch_size=B,
        optim=OptimParams(lr=0.1),
        class_mix=0.5,
        colour_transfer=0.5,
        class_colour_transfer=0.5,
        augment_target=AugmentParams(jitter=0.2, exposure=0.2),
        ema_momentum=0.9,
        # Stored labels alone: those of a new model's teacher are near ties, which rounding decides.
        stored_labels=True,
        threshold=1.0,
    )
    return TeacherMixTask(_model(), None, None, params=params, weight=WEIGHT, warp=None, device=CPU)


def _stepper(task: Any, parts: int = 1, **context: Any) -> Stepper:
    how = RunContext(**context)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    guard = StepGuard(lag=False, scaler=scaler, spikes=LossSpikes())
    optimizer = torch.optim.SGD(task.trained.parameters(), lr=0.1)
    return Stepper(task, optimizer, scaler, guard, how, seed=7, clip_norm=0.0, name="adapt", parts=parts)


TASKS: dict[str, Callable[[], Any]] = {
    "weighted": _supervised,
    "plain": lambda: _supervised(weight=None, label_smoothing=0.1),
    "hard pixels": lambda: _supervised(ohem=(0.15, 0.3)),
    "alignment": _alignment,
    "mpa": lambda: _mpa("pixels"),
    "released": lambda: _mpa("released"),
    "teacher mix": _teacher_mix,
}


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("kind", TASKS)
def test_a_step_in_micro_batches_is_the_step_of_the_batch(kind, parts):
    steps, gradients, states = [], [], []
    for number in (1, parts):
        task = TASKS[kind]()
        batch = _batch(1) if isinstance(task, SupervisedTask) else (_batch(1), _batch(2))
        stepper = _stepper(task, number)
        steps.append([stepper(step, batch) for step in range(2)])
        gradients.append(
            {n: p.grad.clone() for n, p in task.trained.named_parameters() if p.grad is not None}
        )
        states.append({k: part.state_dict() for k, part in task.components().items()})
    for whole, split_up in zip(*steps, strict=True):
        assert whole.keys() == split_up.keys()
        for name, value in whole.items():
            torch.testing.assert_close(
                split_up[name], value, rtol=2e-4, atol=1e-6, msg=lambda m, n=name: n + m
            )
    largest = max(g.abs().max() for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=float(largest) * 1e-5)
    for part in set(states[0]) - {"discriminator_optimizer"}:
        for name, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], value, rtol=1e-3, atol=1e-5)


def test_plain_means_of_micro_batches_are_another_gradient():
    """What the test above would see if denominators were those of each micro-batch."""
    task, batch = _supervised(), _batch(1)
    whole = _stepper(task)(0, batch)["loss/total"]
    torch.manual_seed(0)
    own = torch.stack([_supervised().losses(0, part)["loss/total"].detach() for part in split(batch, 2)])
    assert abs(float(own.mean() - whole)) > 1e-3


def test_batch_norms_see_micro_batches_and_move_once_for_each():
    norm = nn.BatchNorm2d(3)

    class Normed(_Task):
        def __init__(self) -> None:
            super().__init__()
            self.trained = nn.Sequential(norm)

        def losses(self, step: int, batch: Tensor) -> dict[str, Tensor]:
            return {"loss/total": self.trained(batch).square().mean()}

    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(norm)
    for half in x.chunk(2):
        expected(half)
    _stepper(Normed(), 2)._gradients(0, x)
    assert norm.num_batches_tracked == 2
    torch.testing.assert_close(norm.running_mean, expected.running_mean)


def test_a_batch_that_does_not_split_is_an_error():
    with pytest.raises(ValueError, match="3 samples do not split into 2 micro-batches"):
        split(({"image": torch.zeros(3, 2)},), 2)
    with pytest.raises(ValueError, match="accumulate 3 does not divide batch_size 4"):
        SupervisedParams(iterations=1, batch_size=4, accumulate=3, optim=OptimParams(lr=0.1))


class _Hungry(_Task):
    """Runs out of memory above ``fits`` samples, after it has changed a buffer; notes the sizes it saw."""

    def __init__(self, fits: int, error: Exception) -> None:
        super().__init__()
        self.trained.register_buffer("seen", torch.zeros(()))
        self.fits, self.error, self.sizes = fits, error, []

    def batches(self, start_step: int):
        for step in range(start_step, 10**6):
            yield torch.randn(4, 4, generator=torch.Generator().manual_seed(step))

    def losses(self, step: int, batch: Tensor) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        self.trained.seen += 1
        if len(batch) > self.fits:
            raise self.error
        return {"loss/total": (self.trained[2](self.trained[0](batch)) - 1).square().mean()}


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
ALLOCATOR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

DRIVER = torch.AcceleratorError("CUDA error: out of memory")
CUDNN = RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")


@pytest.mark.parametrize("error", [CUDA, ALLOCATOR, DRIVER, CUDNN, MemoryError()])
def test_out_of_memory_says_what_to_lower(tmp_path, error):
    with pytest.raises(OutOfMemory) as raised:
        _run(_Hungry(2, error), tmp_path)
    for text in (
        "stage test, step 1",
        "on cpu",
        "test.batch_size",
        "crop",
        "accumulate (now 1)",
        "runtime.on_oom",
    ):
        assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_message_names_the_images():
    batch = (_batch(1), _batch(2))
    text = _stepper(_alignment(), 2)._what(11, batch)
    assert text == "stage adapt, step 12, 4 images of 32 x 64, 4 images of 32 x 64 in 2 micro-batches, on cpu"


def test_micro_batches_are_halved_until_they_fit_and_the_batch_stays(caplog):
    whole, hungry = _Hungry(4, CUDA), _Hungry(1, CUDA)
    first, second = _stepper(whole), _stepper(hungry, on_oom="accumulate")
    batch = next(whole.batches(0))
    torch.testing.assert_close(second(0, batch)["loss/total"], first(0, batch)["loss/total"])
    assert second.parts == 4 and "going on with 2 micro-batches" in caplog.text
    for a, b in zip(whole.trained.parameters(), hungry.trained.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    # Of the attempts that failed nothing is left: one more forward pass than the whole batch has.
    assert float(hungry.trained.seen) == float(whole.trained.seen) == 1
    hungry.sizes.clear()
    second(1, batch)
    assert set(hungry.sizes) == {1}, "later steps do not try again"


def test_a_single_sample_that_does_not_fit_is_an_error():
    with pytest.raises(OutOfMemory, match="in 4 micro-batches.*do not help"):
        _stepper(_Hungry(0, CUDA), on_oom="accumulate")(0, torch.randn(4, 4))


def test_other_errors_pass():
    for error in (RuntimeError("shape mismatch"), ValueError("bad image")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error), match=str(error)):
            _stepper(_Hungry(0, error), on_oom="accumulate")(0, torch.randn(4, 4))


def test_a_resumed_run_keeps_its_micro_batches(tmp_path):
    def run(task: _Hungry, folder) -> None:
        _run(task, folder, steps=8, on_oom="accumulate")

    whole, killed, resumed = (_Hungry(2, CUDA) for _ in range(3))
    run(whole, tmp_path / "whole")
    losses, killed.count = killed.losses, 0

    def die(step: int, batch: Tensor) -> dict[str, Tensor]:
        if step == 6:
            raise KeyboardInterrupt
        return losses(step, batch)

    killed.losses = die
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path / "killed")
    run(resumed, tmp_path / "killed")
    assert 4 in whole.sizes and set(resumed.sizes) == {2}
    for a, b in zip(whole.trained.parameters(), resumed.trained.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_operator_without_a_deterministic_way_is_named():
    class Random(_Task):
        def losses(self, step: int, batch: Tensor) -> dict[str, Tensor]:
            raise RuntimeError(
                "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but"
            )

    with pytest.raises(NotDeterministic, match="grid_sampler_2d_backward_cuda .*runtime.device: cpu"):
        _stepper(Random())(0, torch.randn(3, 4))


def test_deterministic_mode_is_torchs(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        steps = []
        for _ in range(2):
            steps.append(_stepper(_mpa("pixels"))(0, (_batch(1), _batch(2)))["grad_norm"])
        assert torch.equal(*steps)
    finally:
        set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
