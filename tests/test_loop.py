import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from panoda.engine.guard import TrainingDiverged
from panoda.engine.loop import LoopState, run_loop
from panoda.engine.optim import build_optimizer, build_scheduler
from panoda.engine.resume_points import load_resume
from panoda.engine.spikes import LossSpikes
from panoda.system.context import RunContext


class _Task:
    """Noisy regression with dropout: any slip in step, data or randomness changes the weights."""

    def __init__(self, poison: int | None = None, kill: int | None = None) -> None:
        torch.manual_seed(0)
        self.trained = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.poison, self.kill = poison, kill

    def batches(self, start_step: int) -> Iterator[torch.Tensor]:
        for step in range(start_step, 10**6):
            yield torch.randn(3, 4, generator=torch.Generator().manual_seed(step))

    def losses(self, step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if step == self.kill:
            raise KeyboardInterrupt
        loss = (self.trained(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
        return {"loss/total": loss * (float("nan") if step == self.poison else 1.0)}

    def after_step(self, step: int) -> dict[str, torch.Tensor]:
        return {}

    def describe(self, batch: torch.Tensor) -> str:
        return "image-a, image-b"

    def components(self) -> dict[str, nn.Module]:
        return {"model": self.trained}


def _run(
    task: _Task,
    folder: Path | None,
    steps: int = 20,
    validate=None,
    minutes: float = 10.0,
    on_oom: str = "fail",
    compile: bool = False,
) -> LoopState:
    optimizer = build_optimizer(task.trained, name="adamw", lr=0.01, weight_decay=0.1)
    scheduler = build_scheduler(optimizer, horizon=steps, warmup_iterations=2, poly_power=0.9)
    context = RunContext(
        state_dir=folder,
        checkpoint_every=4,
        log_every=5,
        checkpoint_minutes=minutes,
        on_oom=on_oom,
        compile=compile,
    )
    return run_loop(
        task,
        optimizer=optimizer,
        scheduler=scheduler,
        num_steps=steps,
        seed=3,
        clip_norm=1.0,
        context=context,
        description="test",
        validate=validate,
        validate_every=10,
    )


@pytest.mark.parametrize("kill", [1, 4, 9, 19])
def test_a_killed_run_ends_bit_identical(tmp_path, kill):
    whole = _Task()
    history = _run(whole, None).history
    with pytest.raises(KeyboardInterrupt):
        _run(_Task(kill=kill), tmp_path)
    resumed = _Task()
    again = _run(resumed, tmp_path).history
    for one, two in zip(whole.trained.parameters(), resumed.trained.parameters(), strict=True):
        assert torch.equal(one, two)
    assert [row["loss/total"] for row in history] == [row["loss/total"] for row in again]


def test_nan_stops_before_the_step_and_keeps_the_last_point(tmp_path):
    task = _Task(poison=9)
    with pytest.raises(TrainingDiverged, match="step 10.*image-a, image-b"):
        _run(task, tmp_path)
    assert all(torch.isfinite(p).all() for p in task.trained.parameters())
    restored = _Task()
    optimizer = build_optimizer(restored.trained, name="adamw", lr=0.01, weight_decay=0.1)
    parts = {
        "model": restored.trained,
        "optimizer": optimizer,
        "scheduler": build_scheduler(optimizer, horizon=20, warmup_iterations=2, poly_power=0.9),
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "spikes": LossSpikes(),
    }
    step, _ = load_resume(tmp_path, parts)
    assert step == 8
    assert all(torch.isfinite(p).all() for p in restored.trained.parameters())


def test_validation_runs_on_schedule_and_at_the_end(tmp_path):
    seen = []

    def validate(state: LoopState) -> dict[str, float]:
        seen.append(state.step)
        return {"miou/source_val": 0.5}

    state = _run(_Task(), None, steps=25, validate=validate)
    assert seen == [10, 20, 25]
    assert sum("miou/source_val" in row for row in state.history) == 3


def test_resume_points_are_written_by_time_too(tmp_path, monkeypatch):
    seconds = iter(range(0, 10**6, 25))
    monkeypatch.setattr("panoda.engine.loop.time.monotonic", lambda: next(seconds))
    steps = []

    def save(folder, *, step, **_):
        steps.append(step)

    monkeypatch.setattr("panoda.engine.loop.save_resume", save)
    _run(_Task(), tmp_path, minutes=1.0)
    by_steps = {4, 8, 12, 16, 20}
    assert by_steps < set(steps), "a minute passes every second or third step"
    assert all(b - a <= 3 for a, b in zip(steps, steps[1:], strict=False))
    steps.clear()
    _run(_Task(), tmp_path, minutes=0.0)
    assert set(steps) == by_steps


def test_gradients_that_stay_infinite_stop_a_half_precision_run():
    """The scaler skips such steps silently; without a limit the run would end untrained."""

    class Broken(_Task):
        def losses(self, step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            zero = self.trained(batch).sum() * 0
            return {"loss/total": zero.sqrt()}  # finite, its gradient is not

    task = Broken()
    optimizer = build_optimizer(task.trained, name="adamw", lr=0.01, weight_decay=0.1)
    with pytest.raises(TrainingDiverged, match="gradient norm"):
        run_loop(
            task,
            optimizer=optimizer,
            scheduler=build_scheduler(optimizer, horizon=40, warmup_iterations=0, poly_power=0.9),
            num_steps=40,
            seed=0,
            clip_norm=1.0,
            context=RunContext(dtype=torch.float16, log_every=40),
            description="test",
        )


def test_the_share_of_waiting_for_data_is_reported(tmp_path: Path) -> None:
    class Slow(_Task):
        def batches(self, start_step: int) -> Iterator[torch.Tensor]:
            for batch in super().batches(start_step):
                time.sleep(0.02)
                yield batch

    waiting, working = _run(Slow(), None, steps=8), _run(_Task(), None, steps=8)
    assert all(0.5 < row["data_wait_share"] <= 1 for row in waiting.history)
    assert all(0 <= row["data_wait_share"] < 0.5 for row in working.history)


def test_steps_are_compiled_and_validation_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Counted(_Task):
        def losses(self, step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            calls.append("step")
            return super().losses(step, batch)

    def compile_(model: nn.Module, **options: object) -> None:
        def call(x: torch.Tensor) -> torch.Tensor:
            calls.append("compiled")
            return model.forward(x)

        model._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compile_)
    task = Counted()

    def validate(state: LoopState) -> dict[str, float]:
        task.trained(torch.zeros(1, 4))
        return {"score": 0.0}

    _run(task, None, steps=3, validate=validate, compile=True)
    assert calls == ["step", "compiled"] * 3
    assert task.trained._compiled_call_impl is None
    plain = _Task()
    _run(plain, None, steps=3)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.trained.parameters(), task.trained.parameters(), strict=True)
    )
