"""Optimisers and schedules: every parameter exactly once, no decay on norms, biases and embeddings.

Layer-wise learning-rate decay as in BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

_ENCODER, _DECODER = "encoder.", "decoder."


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    lr: float = 1.0,
    layer_decay: float = 1.0,
    head_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of equal learning rate and decay; each trainable parameter is in exactly one.

    Vectors (norms, biases) and what ``no_weight_decay()`` of the module or of its encoder names (position
    tables, tokens) do not decay.

    Args:
        module: A ``Segmenter``, or anything else, which then has one learning rate.
        lr: Learning rate of the neck, and of the encoder without layer-wise decay.
        layer_decay: Factor on the rate of each layer of the encoder relative to the layer after it
            (``panoda.models.encoders`` says how layers are numbered); 1 = off.
        head_lr_factor: Factor on the rate of the decoder, its auxiliary heads included.

    Returns:
        Fastest groups first, of equal ones the decayed first.

    Raises:
        ValueError: ``layer_decay`` for a model without an encoder that numbers its layers.
    """
    encoder: Any = getattr(module, "encoder", None)
    if layer_decay != 1.0 and not hasattr(encoder, "layer_of"):
        raise ValueError(
            f"layer_decay is {layer_decay}, but {type(module).__name__} has no encoder with numbered layers; "
            "set layer_decay to 1.0"
        )
    whole: Any = module
    plain = {
        prefix + name
        for part, prefix in ((whole, ""), (encoder, _ENCODER))
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():  # nn.Module yields shared parameters once
        if not parameter.requires_grad:
            continue
        factor, decays = 1.0, parameter.ndim > 1 and name not in plain
        if name.startswith(_ENCODER):
            if layer_decay != 1.0:
                layer = encoder.layer_of(name.removeprefix(_ENCODER))
                factor = layer_decay ** (encoder.num_layers - 1 - layer)
        elif name.startswith(_DECODER):
            factor = head_lr_factor
        groups.setdefault((factor, decays), []).append(parameter)
    return [
        {"params": groups[factor, decays], "lr": lr * factor, "weight_decay": weight_decay if decays else 0.0}
        for factor, decays in sorted(groups, reverse=True)
    ]


def build_optimizer(
    module: nn.Module,
    *,
    name: Literal["adamw", "sgd"],
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    layer_decay: float = 1.0,
    head_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW (``betas``) or SGD (``momentum``) over ``module``; the other arguments as in ``parameter_groups``.

    On a GPU the fused kind: one kernel for all parameters, and a gradient scaler's steps need not wait for
    the device to be skipped. On the CPU torch's default, whose sums are the same everywhere.
    """
    groups = parameter_groups(
        module, weight_decay, lr=lr, layer_decay=layer_decay, head_lr_factor=head_lr_factor
    )
    fused = True if _fuses(name, [p for group in groups for p in group["params"]]) else None
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=fused)
        if fused and momentum:
            _start_momenta(optimizer)
    optimizer.register_load_state_dict_pre_hook(_own_kernels)
    return optimizer


def _fuses(name: str, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether there is a fused kernel: on GPUs, but torch's SGD knows none of parameters in parts (FSDP)."""
    return all(p.is_cuda and (name == "adamw" or not hasattr(p, "full_tensor")) for p in parameters)


def _start_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a momentum of zero, which the first step makes the gradient, as without one.

    The fused kernel allocates momenta in its first step, and leaves them uninitialised if a gradient scaler
    has that step skipped: the next one then adds whatever was in the memory to the weights.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _own_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A resume point may be of another device; the kind of kernels stays this one's."""
    saved, own = state["param_groups"], optimizer.param_groups
    if len(saved) != len(own):
        return state  # torch says what is wrong
    return {
        **state,
        "param_groups": [{**s, "fused": o["fused"]} for s, o in zip(saved, own, strict=True)],
    }


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    *,
    horizon: int,
    warmup_iterations: int,
    poly_power: float,
    schedule: Literal["poly", "cosine"] = "poly",
    constant: tuple[int, float] | None = None,
) -> LambdaLR:
    """Linear warm-up over ``warmup_iterations`` steps, then (1 - step / horizon) ** poly_power, or half a cosine.

    The polynomial counts from the first step on, as in DeepLab and MMSegmentation 0.x. Those multiply the
    warm-up with it, which lowers the rate in the warm-up by at most the share of the horizon it takes. The
    cosine goes from the end of the warm-up to the horizon, as in MAE.
    Every group keeps its ratio to the others. ``constant`` = (step, factor): from that step on the rate
    stays at the peak times the factor.
    """

    def factor(step: int) -> float:
        if constant is not None and step >= constant[0]:
            return constant[1]
        if step < warmup_iterations:
            return (step + 1) / (warmup_iterations + 1)
        if schedule == "cosine":
            passed = (step - warmup_iterations) / max(1, horizon - warmup_iterations)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
        return max(0.0, 1.0 - step / max(1, horizon)) ** poly_power

    return LambdaLR(optimizer, factor)


def gradient_norm(parameters: Iterable[nn.Parameter], clip_norm: float) -> torch.Tensor:
    """Global L2 norm of the gradients; clips them to ``clip_norm`` in place when it is above 0."""
    norm = nn.utils.clip_grad_norm_(list(parameters), clip_norm if clip_norm > 0 else float("inf"))
    # Of parameters in parts it comes in parts.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
