"""Optimisers and schedules: every parameter exactly once, no decay on norms and biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups, decayed matrices and undecayed vectors; each trainable parameter is in exactly one."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():  # nn.Module yields shared parameters once
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(
    module: nn.Module,
    *,
    name: Literal["adamw", "sgd"],
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum over ``module``."""
    groups = parameter_groups(module, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


def build_scheduler(
    optimizer: torch.optim.Optimizer, *, horizon: int, warmup_iterations: int, poly_power: float
) -> LambdaLR:
    """Linear warm-up over ``warmup_iterations`` steps, then (1 - step / horizon) ** poly_power."""

    def factor(step: int) -> float:
        if step < warmup_iterations:
            return (step + 1) / (warmup_iterations + 1)
        return max(0.0, 1.0 - step / max(1, horizon)) ** poly_power

    return LambdaLR(optimizer, factor)


def gradient_norm(parameters: Iterable[nn.Parameter], clip_norm: float) -> torch.Tensor:
    """Global L2 norm of the gradients; clips them to ``clip_norm`` in place when it is above 0."""
    return nn.utils.clip_grad_norm_(list(parameters), clip_norm if clip_norm > 0 else float("inf"))
