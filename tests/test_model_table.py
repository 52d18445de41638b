"""The table of models: operations against a hand count, sizes, choice of pairs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from panoda.cli.models import models_command
from panoda.deployment import model_table as table
from panoda.models import create_model
from panoda.models.deform.layers import DeformableConv, DeformableMLP


def test_operations_of_the_deformable_layers_by_hand() -> None:
    height, width, c, d = 8, 12, 6, 10
    pixels = height * width
    conv = DeformableConv(c, d, kernel_size=3, stride=1, padding=1)
    mlp = DeformableMLP(c)
    hand = {
        # Offsets and modulators (27 channels), samples, weights.
        conv: 2 * pixels * c * 9 * 27 + 8 * pixels * c * 9 + 2 * pixels * c * 9 * d,
        # Depthwise, pointwise, samples, weights.
        mlp: 2 * pixels * c * 9 + 2 * pixels * c * 3 * c + 8 * pixels * c + 2 * pixels * c * c,
    }
    for layer, expected in hand.items():
        layer.to("meta").eval()
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=table._formulas()) as counter:
            layer(torch.empty(1, c, height, width, device="meta"))
        assert counter.get_total_flops() == expected


def test_operations_of_a_vit_by_hand() -> None:
    model = create_model(
        "vit:vit_tiny_patch16_224", decoder="setr_naive", num_classes=5, width=16, blocks=[0]
    ).eval()
    patches, d = 4 * 6, 192
    tokens = patches + 1
    block = 2 * tokens * d * (3 * d + d + 8 * d) + 4 * tokens * tokens * d  # linear layers, attention
    hand = 2 * patches * 3 * 256 * d + block + 2 * patches * 16 * (d + 5)
    assert table.operations(model, (64, 96)) == hand


def test_sizes_and_pairs() -> None:
    assert table.parse_size("400x2048") == (400, 2048)
    for text in ("400", "400x16", "axb"):
        with pytest.raises(ValueError, match="expected HEIGHTxWIDTH"):
            table.parse_size(text)
    assert table.pairs(["a"], ["b", "c"]) == [("a", "b"), ("a", "c")]
    assert table.pairs([], ["segformer"]) == [p for p in table.PAIRS if p[1] == "segformer"]
    with pytest.raises(ValueError, match="default list has none of x"):
        table.pairs(["x"], [])


def test_fast_rows_have_no_time() -> None:
    (row,) = table.measure([("trans4pass_nano", "dmlp")], [(64, 128)], num_classes=3, fast=True)
    assert row.costs[0].seconds is None and row.parameters > 1e6
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table.as_table([row], [(64, 128)], fast=True))
    assert "| trans4pass_nano | dmlp    | 1.24 |" in shown.get()


def test_one_pass_has_a_time_and_a_peak() -> None:
    seconds, megabytes = table.forward_cost("trans4pass_nano", "dmlp", 3, (128, 256), "cpu", None)
    assert 0 < seconds < 60 and 1 < megabytes < 500


@pytest.mark.parametrize("device", ["nowhere", "meta", "mps", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ValueError, match=f"device .* is '{device}'"):
        models_command(
            size=None, encoder=None, decoder=None, classes=3, fast=True, device=device, threads=None
        )


def test_another_gpu_than_the_current_one_is_waited_for_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    second, asked = torch.device("cuda", 1), []
    for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: asked.append(device) or 0)
    image = SimpleNamespace(is_cuda=True, device=second)
    table._seconds(lambda _: None, image)
    table._peak_megabytes(lambda _: None, image)
    assert len(asked) == 4 and set(asked) == {second}
