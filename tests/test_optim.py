import pytest
import torch
from torch import nn

from panoda.training.optim import build_optimizer, build_scheduler, parameter_groups


def test_every_parameter_once_and_no_decay_on_vectors():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.add_module("shared", model[2])
    groups = parameter_groups(model, 0.1)
    seen = [id(p) for g in groups for p in g["params"]]
    assert sorted(seen) == sorted({id(p) for p in model.parameters()})
    assert len(groups[0]["params"]) == 2 and groups[0]["weight_decay"] == 0.1
    assert all(p.ndim <= 1 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0.0


def test_linear_warmup_then_poly():
    optimizer = build_optimizer(nn.Linear(2, 2), name="sgd", lr=1.0, weight_decay=0.0)
    scheduler = build_scheduler(optimizer, horizon=10, warmup_iterations=3, poly_power=2.0)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert rates[5] == pytest.approx(0.25)
    assert scheduler.get_last_lr()[0] == 0
    assert isinstance(
        build_optimizer(nn.Linear(2, 2), name="adamw", lr=1.0, weight_decay=0.1), torch.optim.AdamW
    )
