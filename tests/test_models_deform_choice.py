"""The switch of the deformable convolution: measured once, plain where the kernels cannot run."""

import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from panoda.models.deform import choice as switch
from panoda.models.deform import fused, ops

CPU = torch.device("cpu")
ON_GPU = SimpleNamespace(device=torch.device("cuda", 0))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No memory of earlier calls, and none left behind."""
    monkeypatch.setattr(switch, "_state", {"choice": "auto"})
    monkeypatch.setattr(switch, "_answers", {})
    monkeypatch.setattr(switch, "_said", set())
    for cached in (switch._unable, switch._without_triton):
        cached.cache_clear()
    yield
    for cached in (switch._unable, switch._without_triton):
        cached.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran, with a clock that gives fused 1 ms and plain 2 ms."""
    found: list[str] = []

    def milliseconds(function: Callable[[], str], device: torch.device) -> float:
        name = function()
        found.append(f"time {name}")
        return {"fused": 1.0, "plain": 2.0}[name]

    monkeypatch.setattr(switch, "_milliseconds", milliseconds)
    return found


def _gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="deform is 'fast'; expected one of auto, fused, plain"):
        switch.use_deform("fast")
    assert switch.use_deform("plain") == "auto"
    assert switch.use_deform("fused") == "plain"


@pytest.mark.parametrize("choice", switch.CHOICES)
def test_a_cpu_always_takes_plain(choice: str, caplog: pytest.LogCaptureFixture) -> None:
    switch.use_deform(choice)
    assert switch.choice_for(torch.zeros(1)) == "plain"
    assert switch.choice_for(torch.zeros(1, device="meta")) == "plain"
    assert not _warnings(caplog)


@pytest.mark.parametrize("choice", switch.CHOICES)
def test_a_gpu_that_can_takes_what_was_chosen(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch)
    switch.use_deform(choice)
    assert switch.choice_for(ON_GPU) == choice


def test_deterministic_mode_takes_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch)
    torch.use_deterministic_algorithms(True)
    try:
        assert switch.choice_for(ON_GPU) == "plain"
    finally:
        torch.use_deterministic_algorithms(False)
    assert switch.choice_for(ON_GPU) == "auto"


def test_an_old_gpu_takes_plain_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _gpu(monkeypatch, (7, 5))
    assert [switch.choice_for(ON_GPU) for _ in range(3)] == ["plain"] * 3
    (said,) = _warnings(caplog)
    assert "compute capability 7.5, the kernels need 8.0" in said


def test_without_triton_plain_runs_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _gpu(monkeypatch)
    for name in ("launch", "rows", "grid", "corners"):
        monkeypatch.delitem(sys.modules, f"panoda.models.deform.{name}", raising=False)
        monkeypatch.delattr(f"panoda.models.deform.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert [switch.choice_for(ON_GPU) for _ in range(3)] == ["plain"] * 3
    (said,) = _warnings(caplog)
    assert "Triton cannot be imported" in said and "pip install triton" in said


def test_auto_measures_once_per_shape_and_keeps_the_faster(
    calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def run(key: str) -> str:
        return switch.run("forward", "auto", key, lambda: "fused", lambda: "plain", CPU)

    assert [run("a"), run("a"), run("b"), run("a")] == ["fused"] * 4
    assert calls == ["time fused", "time plain"] * 2
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert len(told) == 2 and "fused (fused 1.000 ms, plain 2.000 ms)" in told[0]


def test_auto_keeps_plain_where_plain_is_faster(calls: list[str]) -> None:
    def run() -> str:  # the clock goes by what is returned, so the roles are swapped here
        return switch.run("forward", "auto", "a", lambda: "plain", lambda: "fused", CPU)

    assert [run(), run()] == ["fused", "fused"]
    assert calls == ["time plain", "time fused"]


@pytest.mark.parametrize(
    ("dtype", "rounding", "mistake"), [(torch.float32, 1e-6, 1e-3), (torch.bfloat16, 5e-3, 0.2)]
)
def test_auto_keeps_plain_where_the_kernels_give_other_numbers(
    dtype: torch.dtype,
    rounding: float,
    mistake: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = iter([1.0, 2.0] * 2)
    monkeypatch.setattr(switch, "_milliseconds", lambda function, device: next(times))
    right = torch.linspace(-3, 3, 1000).to(dtype)

    def run(key: str, fused: torch.Tensor) -> torch.Tensor:
        return switch.run("backward", "auto", key, lambda: (fused, right), lambda: (right, right), CPU)[0]

    near = right * (1 + rounding)
    assert run("near", near) is near
    assert not _warnings(caplog)
    assert run("far", right * (1 + mistake)) is right
    (said,) = _warnings(caplog)
    assert "other numbers, backward:" in said and "away from numbers of size 54" in said
    assert run("broken", right * torch.nan) is right
    assert run("broken", near) is right  # for good


def test_fused_is_not_measured(calls: list[str]) -> None:
    assert switch.run("forward", "fused", "a", lambda: "fused", lambda: "plain", CPU) == "fused"
    assert not calls


@pytest.mark.parametrize("choice", ["auto", "fused"])
def test_a_kernel_that_fails_gives_way_for_good(
    choice: str, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    def broken() -> str:
        attempts.append(1)
        raise RuntimeError("ptxas went home\nand more")

    for _ in range(3):
        assert switch.run("forward", choice, "a", broken, lambda: "plain", CPU) == "plain"
    assert len(attempts) == 1
    (said,) = _warnings(caplog)
    assert "RuntimeError: ptxas went home" in said and "and more" not in said


def test_out_of_memory_is_not_a_reason_for_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> str:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        switch.run("forward", "fused", "a", full, lambda: "plain", CPU)
    # ... but the kernels win where only the columns do not fit.
    monkeypatch.setattr(switch, "_milliseconds", lambda function, device: float(len(function())))
    assert switch.run("forward", "auto", "b", lambda: "fused", full, CPU) == "fused"


def test_nothing_is_measured_while_a_graph_is_captured(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "_capturing", lambda device: True)
    assert switch.run("forward", "auto", "a", lambda: "fused", lambda: "plain", CPU) == "plain"
    monkeypatch.setattr(switch, "_capturing", lambda device: False)
    assert switch.run("forward", "auto", "a", lambda: "fused", lambda: "plain", CPU) == "fused"
    assert calls == ["time fused", "time plain"]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (10, 2), (4, 4)])
def test_the_operators_plain_gradients_are_those_of_autograd(
    channels: int, groups: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The custom operator with answer "plain": what auto runs on a GPU where plain is faster.
    monkeypatch.setattr(switch, "run", lambda stage, choice, key, fused, plain, device: plain())
    monkeypatch.setattr(fused, "_unsuited", lambda *_: False)
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, channels, 6, 7), (2, 18 * groups, 3, 4), (5, channels, 3, 3), (5,), (2, 9 * groups, 3, 4)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for choice in ("plain", "auto"):
        monkeypatch.setattr(ops, "choice_for", lambda x, choice=choice: choice)
        leaves = [t.clone().requires_grad_() for t in inputs[: 5 if masked else 4]]
        out = ops.deform_conv2d(*leaves[:4], mask=leaves[4] if masked else None, stride=2, padding=1)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_key_tells_shapes_types_and_order_apart() -> None:
    x, offset, weight = torch.zeros(2, 4, 6, 6), torch.zeros(2, 2, 6, 6), torch.zeros(5, 4, 1, 1)
    mask, numbers = torch.zeros(2, 1, 6, 6), [1, 1, 1, 1, 0, 0, 1, 1]
    keys = {
        fused._key(x, offset, mask, weight, 1, numbers),
        fused._key(x.bfloat16(), offset, mask, weight, 1, numbers),
        fused._key(x[:1], offset[:1], mask[:1], weight, 1, numbers),
        fused._key(x, offset, None, weight, 1, numbers),
        fused._key(x.contiguous(memory_format=torch.channels_last), offset, mask, weight, 1, numbers),
    }
    assert len(keys) == 5
    assert fused._key(x.clone(), offset.clone(), mask, weight, 1, list(numbers)) in keys
