"""Bad numbers and loss spikes are found and named, without reading a value in every step on a GPU."""

import math

import pandas as pd
import pytest
import torch
from test_loop import _run, _Task
from torch.utils._python_dispatch import TorchDispatchMode

from panoda.engine.guard import PENDING, StepGuard, TrainingDiverged
from panoda.engine.loop import run_loop
from panoda.engine.optim import build_optimizer, build_scheduler
from panoda.engine.resume_points import resume_points
from panoda.engine.spikes import NEEDED, WINDOW, LossSpikes
from panoda.system.context import RunContext


def _guard(*, lag: bool, scale: float | None = None) -> tuple[StepGuard, LossSpikes]:
    scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
    if scale is not None:
        scaler.scale(torch.ones(()))  # its scale exists from the first use on
    spikes = LossSpikes()
    return StepGuard(lag=lag, scaler=scaler, spikes=spikes), spikes


def _values(loss: float, norm: float = 1.0) -> dict[str, torch.Tensor]:
    return {"loss/total": torch.tensor(loss), "grad_norm": torch.tensor(norm)}


def test_a_lagging_guard_names_the_first_bad_step():
    guard, spikes = _guard(lag=True)
    guard.add(1, "a", _values(1.0))
    guard.add(2, "b", _values(math.inf))
    guard.add(3, "c", _values(math.nan, math.nan))
    with pytest.raises(TrainingDiverged, match=r"loss is inf at step 2 .*batch: b\."):
        guard.check()
    guard.check()
    assert not spikes.rows


def test_a_guard_on_the_cpu_does_not_wait():
    guard, _ = _guard(lag=False)
    guard.add(1, "a", _values(1.0))
    with pytest.raises(TrainingDiverged, match="gradient norm is nan at step 2"):
        guard.add(2, "b", _values(1.0, math.nan))


def test_memory_of_a_lagging_guard_is_bounded():
    guard, _ = _guard(lag=True)
    with pytest.raises(TrainingDiverged, match="step 1 "):
        for step in range(1, PENDING + 1):
            guard.add(step, "a", _values(math.nan))


@pytest.mark.parametrize(("scale", "fails"), [(None, True), (65536.0, False), (1.0, False), (0.5, True)])
def test_an_overflow_of_half_precision_is_an_error_only_at_a_scale_below_one(scale, fails):
    guard, _ = _guard(lag=True, scale=scale)
    guard.add(1, "a", _values(1.0, math.inf))
    if fails:
        with pytest.raises(TrainingDiverged, match="gradient norm is inf"):
            guard.check()
    else:
        guard.check()


def test_a_spike_is_named_with_its_samples_and_written(tmp_path, caplog):
    random = torch.Generator().manual_seed(0)
    spikes = LossSpikes()
    for step in range(1, 101):
        spikes.add(step, float(2 + 0.1 * torch.randn((), generator=random)), f"image-{step}")
    assert not spikes.rows
    spikes.add(101, 9.0, "odd-image, image-7")
    assert "loss spike at step 101: 9" in caplog.text and "odd-image, image-7" in caplog.text
    spikes.write(tmp_path / "loss_spikes.csv")
    table = pd.read_csv(tmp_path / "loss_spikes.csv")
    assert table["step"].tolist() == [101] and table["samples"].tolist() == ["odd-image, image-7"]
    assert 1.95 < table["median"][0] < 2.05 and 40 < table["deviations"][0] < 100


def test_spikes_are_not_sought_too_early_and_constant_losses_have_none(tmp_path):
    spikes = LossSpikes()
    for step in range(NEEDED - 1):
        spikes.add(step, 1.0, "a")
    spikes.add(NEEDED, 1e6, "early")
    for step in range(1000):
        spikes.add(step, 1.0 + 1e-4 * (step % 7 == 0), "a")
    assert spikes.rows == [] and len(spikes.state_dict()["recent"]) == WINDOW
    spikes.write(tmp_path / "none.csv")
    assert pd.read_csv(tmp_path / "none.csv").empty


def test_spikes_go_on_after_a_restart():
    whole, first, second = LossSpikes(), LossSpikes(), LossSpikes()
    losses = [1 + 0.01 * math.sin(step) + 5 * (step in (70, 140)) for step in range(160)]
    for step, loss in enumerate(losses):
        whole.add(step, loss, str(step))
        (first if step < 100 else second).add(step, loss, str(step))
        if step == 99:
            second.load_state_dict(first.state_dict())
    assert [row["step"] for row in whole.rows] == [70, 140]
    assert second.state_dict() == whole.state_dict()


class _Reads(TorchDispatchMode):
    """Counts values that leave the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


class _AsOnGpu(_Task):
    """Notes how many values were read before every step."""

    def __init__(self, reads: _Reads, poison: int | None = None) -> None:
        super().__init__(poison)
        self.reads, self.seen = reads, []

    def losses(self, step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(self.reads.count)
        return super().losses(step, batch)


def _lagging(monkeypatch) -> None:
    monkeypatch.setattr(
        "panoda.engine.loop.StepGuard", lambda *, lag, **keywords: StepGuard(lag=True, **keywords)
    )


def test_no_value_is_read_between_log_points(monkeypatch):
    _lagging(monkeypatch)
    with _Reads() as reads:
        task = _AsOnGpu(reads)
        optimizer = build_optimizer(task.trained, name="sgd", lr=0.01, weight_decay=0.1)
        run_loop(
            task,
            optimizer=optimizer,
            scheduler=build_scheduler(optimizer, horizon=20, warmup_iterations=0, poly_power=0.9),
            num_steps=20,
            seed=0,
            clip_norm=1.0,
            context=RunContext(log_every=5),
            description="test",
        )
    changed = [step for step in range(1, 20) if task.seen[step] != task.seen[step - 1]]
    assert changed == [5, 10, 15]


def test_a_lagging_guard_keeps_nothing_of_a_bad_step(monkeypatch, tmp_path):
    _lagging(monkeypatch)
    with pytest.raises(TrainingDiverged, match="loss is nan at step 8 "):
        _run(_Task(poison=7), tmp_path)  # the resume point after step 8 is not written
    assert list(resume_points(tmp_path)) == [4]


class _Late(_Task):
    """Another loss of step 8, which is computed once that step is taken, is not a number."""

    def after_step(self, step: int) -> dict[str, torch.Tensor]:
        return {"loss/discriminator": torch.tensor(math.nan if step == 7 else 0.5)}


@pytest.mark.parametrize("lag", [False, True])
def test_a_bad_value_after_a_step_keeps_nothing_of_it(monkeypatch, tmp_path, lag):
    if lag:
        _lagging(monkeypatch)
    with pytest.raises(TrainingDiverged, match=r"loss/discriminator is nan at step 8 .*image-a, image-b"):
        _run(_Late(), tmp_path)  # a resume point is due after step 8
    assert list(resume_points(tmp_path)) == [4]
