"""The mean teacher: torch's averaged model, to the last bit."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from panoda.engine.teacher import Teacher


def test_updates_are_those_of_torchs_averaged_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    own = Teacher(model, momentum=0.9)
    other = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    assert not own.training and not own.module.training
    start = copy.deepcopy(own.module.state_dict())
    for step in range(4):
        model(torch.randn(2, 3, 8, 8))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        own.update_parameters(model)
        other.update_parameters(model)
        if step == 0:
            assert all(torch.equal(a, b) for a, b in zip(own.module.buffers(), model.buffers(), strict=True))
    assert own.state_dict().keys() == other.state_dict().keys()
    for key, value in other.state_dict().items():
        assert torch.equal(own.state_dict()[key], value), key
    assert not torch.equal(own.module[0].weight, start["0.weight"])
    assert not torch.equal(own.module[0].weight, model[0].weight)
