from types import SimpleNamespace

import pytest
import torch
from torch import nn

from panoda.engine.optim import _fuses, build_optimizer, build_scheduler, parameter_groups
from panoda.models import create_model


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


ENCODERS = (
    "trans4pass_nano",
    "mit_b0",
    "pvt_v2_b0",
    "vit:vit_tiny_patch16_224",
    "vit:beit_base_patch16_224",
    "timm:convnext_atto",
)


def model_of(encoder: str) -> nn.Module:
    with torch.device("meta") if encoder == "vit:beit_base_patch16_224" else torch.device("cpu"):
        return create_model(encoder, num_classes=3, decoder="upernet", width=16)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_layer_decay_over_encoders(encoder):
    model = model_of(encoder)
    groups = parameter_groups(model, 0.05, lr=1e-2, layer_decay=0.5, head_lr_factor=4.0)
    seen = [id(p) for g in groups for p in g["params"]]
    assert len(seen) == len(set(seen)) and set(seen) == {id(p) for p in model.parameters() if p.requires_grad}
    kinds = [(g["lr"], g["weight_decay"] > 0) for g in groups]
    assert kinds == sorted(set(kinds), reverse=True) and kinds[0] == (4e-2, True)
    group_of = {id(p): g for g in groups for p in g["params"]}
    last = model.encoder.num_layers - 1
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        where, _, own = name.partition(".")
        factor = {"decoder": 4.0, "neck": 1.0}.get(where)
        if factor is None:
            factor = 0.5 ** (last - model.encoder.layer_of(own))
        assert group["lr"] == pytest.approx(1e-2 * factor)
        table = name.endswith(("pos_embed", "cls_token", "relative_position_bias_table"))
        assert group["weight_decay"] == (0.0 if parameter.ndim <= 1 or table else 0.05)
    stem = min(g["lr"] for g in groups)
    assert stem == pytest.approx(1e-2 * 0.5**last)
    # Twelve blocks of a ViT-B, its embedding, and the final norm that segmentation leaves out.
    assert last == 13 or not encoder.startswith("vit:")


def test_the_schedule_moves_every_group_and_keeps_their_ratios():
    model = model_of("vit:vit_tiny_patch16_224")
    optimizer = build_optimizer(
        model, name="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.65, head_lr_factor=10.0
    )
    start = [g["initial_lr"] if "initial_lr" in g else g["lr"] for g in optimizer.param_groups]
    assert max(start) == pytest.approx(1e-2) and len(set(start)) > 10
    scheduler = build_scheduler(optimizer, horizon=8, warmup_iterations=1, poly_power=1.0)
    for factor in (0.5, 7 / 8, 6 / 8):
        assert scheduler.get_last_lr() == pytest.approx([factor * lr for lr in start])
        optimizer.step()
        scheduler.step()


def test_layer_decay_needs_numbered_layers():
    with pytest.raises(ValueError, match=r"layer_decay is 0\.5.*set layer_decay to 1\.0"):
        parameter_groups(nn.Linear(2, 2), 0.1, layer_decay=0.5)


def test_the_schedule_is_the_published_one():
    """MMSegmentation 0.x: (1 - t/T)^p, in the warm-up times 1 - (1 - t/W)(1 - 1e-6)."""
    horizon, warm, power = 160_000, 1500, 1.0

    def published(t: int) -> float:
        poly = (1 - t / horizon) ** power
        return poly * (1 - (1 - t / warm) * (1 - 1e-6)) if t < warm else poly

    optimizer = build_optimizer(nn.Linear(2, 2), name="adamw", lr=1.0, weight_decay=0.0)
    scheduler = build_scheduler(optimizer, horizon=horizon, warmup_iterations=warm, poly_power=power)
    ours = scheduler.lr_lambdas[0]
    for step in (warm, 2000, 80_000, 159_999):
        assert ours(step) == pytest.approx(published(step), rel=1e-12)
    for step in range(warm):
        assert ours(step) == pytest.approx(published(step), abs=1 / warm + warm / horizon)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(("saved", "own"), [(True, None), (None, True)])
def test_a_state_of_another_device_leaves_the_kind_of_kernels(name, saved, own):
    def made(fused):
        module = nn.Linear(2, 2)
        optimizer = build_optimizer(module, name=name, lr=0.1, weight_decay=0.0)
        for group in optimizer.param_groups:
            group["fused"] = fused
        module(torch.ones(1, 2)).sum().backward()
        return optimizer

    one, two = made(saved), made(own)
    one.step()
    two.load_state_dict(one.state_dict())
    assert [group["fused"] for group in two.param_groups] == [own, own]
    two.step()
    state = next(iter(two.state.values()))
    assert name == "sgd" or float(state["step"]) == 2.0


def test_parameters_in_parts_are_not_stepped_on_by_a_kernel_that_knows_none():
    """torch: "Operator aten._fused_sgd_.default does not have a sharding strategy registered"."""
    whole, part = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=True, full_tensor=None)
    assert _fuses("sgd", [whole]) and _fuses("adamw", [whole, part])
    assert not _fuses("sgd", [whole, part])
    assert not _fuses("adamw", [whole, SimpleNamespace(is_cuda=False)])
