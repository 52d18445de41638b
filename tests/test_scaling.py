"""docs/scaling.md says what benchmarks/scaling.py reckons, which is right where a hand can check it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from benchmarks.scaling import breaking, cluster, filled, render, stored
from benchmarks.scaling_costs import (
    CHANNELS,
    Cost,
    Inputs,
    Launches,
    Task,
    discriminator,
    size_of,
    tasks,
    views,
)
from panoda.config import PseudoLabelParams
from panoda.deployment.model_table import operations
from panoda.methods.parts.discriminator import Discriminator
from panoda.models import create_model


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs.load()


@pytest.fixture
def simple(inputs: Inputs) -> Inputs:
    """5e11 operations a second, a launch in a millisecond."""
    assumed = {**inputs.assumed, "gpu_flops": 1e12, "utilisation": 0.5, "launch_seconds": 0.75e-3}
    return replace(inputs, assumed=assumed, measured={**inputs.measured, "operator_seconds": 0.25e-3})


def test_the_document_has_the_tables_of_these_inputs(inputs: Inputs) -> None:
    document = scaling.DOCUMENT.read_text(encoding="utf-8")
    tables = render(inputs)
    assert filled(document, tables) == document, "run python -m benchmarks.scaling --write"
    for lost in ("<!-- stored -->", "<!-- end of core -->"):
        with pytest.raises(ValueError, match="has no place"):
            filled(document.replace(lost, ""), tables)


def test_a_unit_computes_or_launches_whichever_is_longer(simple: Inputs) -> None:
    assert Cost(1e12, 1000).seconds(simple) == 2.0 and Cost(1e12, 3000).seconds(simple) == 3.0
    assert Cost(2, 3).images(4) == Cost(8, 3) and Cost(2, 3).times(4) == Cost(8, 12)


def test_training_takes_the_gpus_that_divide_its_batch(simple: Inputs) -> None:
    step = Task("adapt", 3600, Cost(4e12, 1000), batch=4)
    assert [step.gpus(n) for n in (1, 2, 3, 8)] == [1, 2, 2, 4]
    assert step.hours(1, simple) == 8.0  # 4e12 operations at 5e11 a second
    assert step.hours(8, simple) == 2.0
    assert Task("adapt", 3600, Cost(4e12, 5000), batch=4).hours(8, simple) == 5.0  # launches are not shared
    images = Task("pseudo_labels", 3600, Cost(4e12, 5000))
    assert images.gpus(8) == 8 and images.hours(8, simple) == 1.0


def test_views_are_those_of_inference() -> None:
    seen: list[tuple[int, int]] = []

    class Watched(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.shape[-2], x.shape[-1]))
            return x[:, :2]

    from panoda.inference.prediction import predict_logits

    for wrap in (True, False):
        seen.clear()
        predict_logits(
            Watched(), torch.zeros(1, 3, 100, 512, dtype=torch.uint8), scales=(0.5, 1, 1.75), wrap=wrap
        )
        assert views((100, 512), (0.5, 1, 1.75), wrap=wrap) == seen


def test_operations_are_counted(inputs: Inputs) -> None:
    with FlopCounterMode(display=False) as flop_counter:
        Discriminator(19)(torch.zeros(1, 19, 64, 96))
    assert discriminator(19, (64, 96)) == Cost(flop_counter.get_total_flops(), 9)
    stages = {task.name: task for task in tasks(inputs)}
    flops, launches = inputs.counted["512x512"]
    assert stages["pretrain"].cost == Cost(3 * 4 * flops, 3 * launches)
    both = stages["warmup"], stages["adapt"]
    assert both[0].cost.flops == 2 * both[1].cost.flops  # 4 + 4 images and 2 + 2
    model = create_model("trans4pass_t", decoder="dmlp", num_classes=19).eval()
    assert model.feature_channels == CHANNELS
    # Implementations change; where they do more than that, --count is due.
    assert operations(model, (512, 512)) == pytest.approx(flops, rel=0.05)
    with torch.no_grad(), Launches() as counter:
        model(torch.empty(1, 3, 512, 512, device="meta"))
    assert counter.count == pytest.approx(launches, rel=0.3)


def test_measured_bytes_are_those_of_the_formats(inputs: Inputs) -> None:
    height, width = size_of(inputs.params, "target")
    measured, pixels = inputs.measured, height * width
    assert measured["shard_raw_bytes_per_image"] == pytest.approx(3 * pixels, rel=0.01)
    assert measured["label_bytes_per_image"] == pytest.approx(2 * pixels, rel=0.01)
    assert measured["shard_webp_bytes_per_image"] < 3 * pixels / 2
    # (K, levels, D) and (K, levels) in eight bytes, for levels up to the cap.
    levels = int(PseudoLabelParams().cap * 255) + 1
    assert measured["sums_bytes_per_piece_and_channel"] == pytest.approx(19 * levels * 8, rel=0.1)


def test_ten_million_by_hand(inputs: Inputs) -> None:
    assert inputs.assumed["images"] == 10_000_000 and inputs.gpus == 64 and inputs.cores == 1024
    rows = {row["what"]: row for row in stored(inputs)}
    label = rows["pseudo-label shards (label, confidence)"]
    assert label["TB"] == pytest.approx(10 * inputs.measured["label_bytes_per_image"] / 1e6)
    burdens = {(row["what"], row["unit"]): row for row in breaking(inputs)}
    pieces = burdens["pieces of one pass = Dask tasks = Prefect task runs", ""]
    assert (pieces["pieces of 64"], pieces["pieces of 1024"]) == (156_250, 9_766)
    assert burdens["MLflow metrics of one adaptation", "rows"]["pieces of 64"] == 16_000
    first = next(iter(cluster(inputs)))
    core_hours = 1e7 * inputs.measured["prepare_webp_seconds_per_image"] / 3600
    assert first["h computing"] == pytest.approx(core_hours / 1024)
