"""Weight averaging: the mean, the batch norms it renews, what is kept, and resuming in the middle."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_data import prepared
from torch import nn
from torch.optim.swa_utils import update_bn

from panoda.config import AugmentParams, ModelParams, OptimParams
from panoda.engine.averaging import WeightAverage, recompute_batch_norm
from panoda.engine.step import Stepper
from panoda.methods.supervised import SupervisedParams
from panoda.models import create_model
from panoda.stages import pretrain as stage
from panoda.stages.pretrain import pretrain
from panoda.system.context import RunContext

SWA = {"start": 0.5, "every": 2, "lr": 1e-3, "bn_update_batches": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return prepared(tmp_path_factory.mktemp("averaging"), {"train": 4, "val": 2}, erp=False)


def train(data: Path, out: Path, *, state: Path | None = None, **changes) -> dict[str, float]:
    base = {
        "iterations": 9,
        "batch_size": 2,
        "optim": OptimParams(lr=4e-3, warmup_iterations=2, head_lr_factor=2.0),
        "augment": AugmentParams(crop_height=32, crop_width=32),
        "label_smoothing": 0.1,
        "swa": SWA,
        "select": "last",
        "validate_every": 4,
    }
    return pretrain(
        source_train=data / "train",
        source_val=data / "val",
        out=out,
        model=ModelParams(encoder="trans4pass_nano", drop_path=0.2),
        params=SupervisedParams(**{**base, **changes}),
        seed=0,
        context=RunContext(state_dir=state, checkpoint_every=7, log_every=1),
    )


def test_the_mean_of_every_second_weight_after_the_start():
    model = nn.Linear(1, 1)
    average = WeightAverage(model, start_step=4, every=2)
    for step in range(9):
        with torch.no_grad():
            model.weight.fill_(step + 1)
        average.after_step(step)
    assert average.count == 2 and average.model.weight.item() == (6 + 8) / 2


def test_batch_norms_are_renewed_as_torch_does_it():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )
    model(torch.randn(8, 3, 8, 8) * 9)
    other = copy.deepcopy(model)
    batches = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    recompute_batch_norm(model.eval(), batches)
    update_bn(batches, other.eval())
    assert model[1].momentum == 0.1 and not model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


def test_a_norm_that_sees_no_batch_keeps_its_statistics():
    model = create_model("mit_b0", num_classes=3, decoder="upernet", width=8)
    pooled = [m for m in model.decoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in pooled:
        norm.running_mean.fill_(7.0)
    recompute_batch_norm(model, [torch.randn(1, 3, 32, 32)], lambda x: model(x, return_auxiliary=True))
    kept = [norm for norm in pooled if bool((norm.running_mean == 7).all())]
    assert 0 < len(kept) < len(pooled)  # at 32 pixels the deepest map has a single one


def test_pretrain_keeps_the_mean_of_what_it_visited(data, tmp_path, monkeypatch):
    visited = []
    original = Stepper.__call__

    def watching(stepper, step, batch):
        values = original(stepper, step, batch)
        visited.append({k: v.detach().clone() for k, v in stepper.task.trained.named_parameters()})
        return values

    monkeypatch.setattr(Stepper, "__call__", watching)
    metrics = train(data, tmp_path / "out")
    assert metrics["swa/kept"] == 1 and metrics["swa/models"] == 2
    assert metrics["swa/miou/source_val"] == metrics["miou/source_val"]
    assert {"swa/single_miou/source_val", "swa/kept"} <= set(
        json.loads((tmp_path / "out/metrics.json").read_text())
    )
    weights = load_file(tmp_path / "out/model.safetensors")
    for name in visited[0]:  # after 4 of 9 steps, every second: those of steps 6 and 8
        torch.testing.assert_close(weights[name], (visited[5][name] + visited[7][name]) / 2)
    history = pd.read_csv(tmp_path / "out/history.csv").dropna(subset="lr")
    assert history.lr[history.step > 4].tolist() == pytest.approx([2e-3] * 5)  # twice the rate: the decoder's
    assert history.lr[history.step <= 4].min() > 2e-3


def test_worse_averages_are_not_kept(data, tmp_path, monkeypatch):
    original, seen = stage._Keeper._metrics, []

    def staged(self, net):
        seen.append(net)
        return {"miou/source_val": 0.5 - 0.1 * len(seen)} | {f"iou/{len(seen)}": 1.0}

    monkeypatch.setattr(stage._Keeper, "_metrics", staged)
    metrics = train(data, tmp_path / "out", select="best_source_val")
    assert metrics == {
        "miou/source_val": pytest.approx(0.4),
        "iou/1": 1.0,
        "swa/kept": 0.0,
        "swa/models": 2.0,
        "swa/miou/source_val": pytest.approx(0.3),
        "swa/single_miou/source_val": pytest.approx(0.4),
    }
    monkeypatch.setattr(stage._Keeper, "_metrics", original)
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[k], v) for k, v in seen[0].state_dict().items())


def test_a_killed_run_resumes_bit_identical(data, tmp_path, monkeypatch):
    whole = train(data, tmp_path / "whole")
    original = Stepper.__call__

    def dying(stepper, at, batch):
        if at == 7:  # between the two weights that are averaged
            raise KeyboardInterrupt
        return original(stepper, at, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", dying)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "out", state=tmp_path / "state")
    assert train(data, tmp_path / "out", state=tmp_path / "state") == whole
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_an_average_of_nothing_is_refused():
    with pytest.raises(ValueError, match="starts after 4 of 9 iterations and takes weights every 6"):
        SupervisedParams(iterations=9, batch_size=1, optim=OptimParams(lr=1), swa={**SWA, "every": 6})
