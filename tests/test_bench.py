"""`panoda bench`: the plain reference computes our numbers; tables are written row by row."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import panoda.cli.bench
from benchmarks.bench import BENCHMARKS, run
from benchmarks.mpa_step import OurStep, reference_step
from benchmarks.problem import Sizes, models, pictures
from benchmarks.reference.labels import logits_of
from benchmarks.timing import Settings, count_flops, interleaved, markdown
from panoda.cli.app import app
from panoda.inference.prediction import predict_logits

SIZES = Sizes((64, 96), (48, 128), 2)


@pytest.fixture(scope="module")
def steps() -> tuple:
    ours = OurStep(SIZES, Settings())
    return ours, *reference_step(ours)


def test_the_plain_step_gives_our_losses_and_gradients(steps: tuple) -> None:
    ours, reference, call = steps
    for _ in range(2):  # the second step: after an update of model and discriminator
        mine, plain = ours(), call()
        assert plain.keys() == mine.keys()
        for name, value in plain.items():
            assert float(mine[name]) == pytest.approx(value, rel=1e-4), name
    gradients = {name: p.grad for name, p in reference.model.named_parameters()}
    scale = max(float(g.abs().max()) for g in gradients.values())
    for name, parameter in ours.model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-2, atol=1e-4 * scale, msg=name)


def test_the_plain_step_collects_our_class_means(steps: tuple) -> None:
    ours, reference, _ = steps
    bank = ours.task.bank
    for domain in (0, 1):
        for k in range(len(bank.seen)):
            found = [means[k] for means in reference.collected[domain] if k in means]
            assert len(found) == int(bank.batches[domain, k])
            if found:
                torch.testing.assert_close(bank.sums[domain, k], sum(found), rtol=1e-3, atol=1e-3)


def test_the_plain_pseudo_labels_are_ours() -> None:
    model, plain = (m.eval() for m in models(0, torch.device("cpu")))
    image = pictures(1, (64, 128), 0)
    mine = predict_logits(model, image, scales=(0.5, 1.25), flip=True, wrap=False)[0]
    theirs = logits_of(plain, image[0], (0.5, 1.25))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_operations_are_counted_in_torchvisions_operator_too() -> None:
    from torchvision.ops import deform_conv2d

    x, weight = torch.ones(1, 2, 5, 6), torch.ones(3, 2, 1, 1, requires_grad=True)
    offset = torch.zeros(1, 2, 5, 6)

    def forward() -> torch.Tensor:
        return deform_conv2d(x, offset, weight)

    assert count_flops(forward) == 2 * 2 * 3 * 30
    assert count_flops(lambda: forward().sum().backward()) == 3 * 2 * 2 * 3 * 30


def test_sides_take_turns_and_warm_ups_do_not_count() -> None:
    calls: list[str] = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved(functions, repeats=2, device=torch.device("cpu"))
    assert calls == ["a", "b"] * 3 and seconds.keys() == {"a", "b"}


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        if line.startswith("| trans4pass"):
            kept = json.loads((tmp_path / "bench.json").read_text())["tables"]["deform"]
            assert len(kept) == sum(known.startswith("| trans4pass") for known in lines)

    path = run(["deform"], Settings(quick=True, repeats=1), tmp_path, show=show)
    about = json.loads((tmp_path / "bench.json").read_text())["machine"]
    assert about["threads"] == torch.get_num_threads() and about["torch"] == torch.__version__
    assert about["peak_gflops_float32"] > 0
    assert (
        path.read_text().count("| trans4pass_nano") == sum(ln.startswith("| trans4pass") for ln in lines) > 0
    )
    assert markdown([{"a": 1.23456}, {"a": 2.0, "b": "x"}])[2:] == ["| 1.23 |  |", "| 2 | x |"]


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"there are {', '.join(BENCHMARKS)}"):
        run(["deforms"], Settings(), tmp_path, show=print)
    monkeypatch.setattr(panoda.cli.bench, "CHECKOUT", tmp_path)
    result = CliRunner().invoke(app, ["bench", "deform"])
    assert isinstance(result.exception, ValueError) and "from a checkout" in str(result.exception)


def test_operations_of_grouped_convolutions_are_counted_both_ways() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    image = torch.randn(2, 8, 4, 6, requires_grad=True)
    forward = 2 * 8 * 9 * 2 * 4 * 6
    assert count_flops(lambda: conv(image)) == forward
    assert count_flops(lambda: conv(image).sum().backward()) == 3 * forward
