import math

import pytest
import torch
from torch import nn

from panoda.methods.parts.adversarial import Adversary


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, probs):
        return probs[:, :1] * 0 + self.bias


def test_losses_by_hand_and_direction():
    adversary = Adversary(_Constant(), lr=0.1)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert adversary.generator_loss(logits).item() == pytest.approx(math.log(2))
    assert adversary.step(logits, logits).item() == pytest.approx(math.log(2))


def test_the_generator_loss_leaves_the_discriminator_alone():
    torch.manual_seed(0)
    net = nn.Conv2d(3, 1, 1)
    adversary = Adversary(net, lr=0.1)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    adversary.generator_loss(logits).backward()
    assert logits.grad.abs().sum() > 0
    assert net.weight.grad is None
    before = net.weight.detach().clone()
    source, target = torch.randn(1, 3, 4, 4) + 2, torch.randn(1, 3, 4, 4)
    first = adversary.step(source, target)
    for _ in range(50):
        last = adversary.step(source, target)
    assert last < first
    assert not torch.equal(before, net.weight)
