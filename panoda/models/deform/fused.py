"""The fused deformable convolution as a custom operator: autograd and torch.compile take it whole.

The operator decides at run time between the Triton kernels and the plain steps (``choice``), forward
and backward each for itself, so a compiled graph is the same for both. It saves its inputs only: samples are
computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panoda.models.deform import choice as switch
from panoda.models.deform import plain as steps


@torch.library.custom_op(
    "panoda::deform_fused",
    mutates_args=(),
    schema="(Tensor x, Tensor offset, Tensor? mask, Tensor weight, Tensor? bias, int groups, int[] geometry,"
    " str choice) -> Tensor",
)
def deform_fused(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    geometry: Sequence[int],
    choice: str,
) -> Tensor:
    """Deformable convolution of checked arguments.

    Args:
        x: (N, C, H, W), float32, bfloat16 or float16; blended in float32.
        offset: (N, 2 * G * K, Ho, Wo), float32.
        mask: (N, G * K, Ho, Wo), float32, or None.
        weight: (D, C, kh, kw); its type is that of the products, which are summed in float32.
        bias: (D,) or None.
        groups: Offset groups G.
        geometry: The eight integers of ``Geometry.packed``.
        choice: ``fused`` or ``auto``.

    Returns:
        (N, D, Ho, Wo) in the dtype of ``weight``.
    """

    def fused() -> Tensor:
        from panoda.models.deform import launch

        return launch.forward(x, offset, mask, weight, bias, groups, geometry)

    def plain() -> Tensor:
        added = None if bias is None else bias.to(weight.dtype)
        return steps.forward(x, offset, mask, weight, added, groups, geometry)

    if _unsuited(x, offset, weight):
        return plain()
    key = _key(x, offset, mask, weight, groups, geometry)
    return switch.run("forward", choice, key, fused, plain, x.device)


@torch.library.custom_op(
    "panoda::deform_fused_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor offset, Tensor? mask, Tensor weight, int groups, int[] geometry,"
    " str choice, bool with_x) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    groups: int,
    geometry: Sequence[int],
    choice: str,
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless with_x), offset, mask (empty without one) and weight."""

    def fused() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from panoda.models.deform import launch

        return launch.backward(grad, x, offset, mask, weight, groups, geometry, with_x=with_x)

    def plain() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return steps.backward(grad, x, offset, mask, weight, groups, geometry, with_x=with_x)

    if _unsuited(x, offset, weight):
        found = plain()
    else:
        key = (with_x, _key(x, offset, mask, weight, groups, geometry))
        found = switch.run("backward", choice, key, fused, plain, x.device)
    # In the type and memory order of x, as autograd and compiled graphs expect.
    own = torch.empty_like(x).copy_(found[0]) if with_x else x.new_empty(0)
    return own, *found[1:]


def _unsuited(x: Tensor, offset: Tensor, weight: Tensor) -> bool:
    """Whether the kernels cannot take these tensors; a warning names the reason once."""
    from panoda.models.deform import launch

    reason = launch.unsuited(x, offset, weight)
    if reason is not None:
        switch.warn_once(reason)
    return reason is not None


def _key(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, groups: int, geometry: Sequence[int]
) -> tuple[object, ...]:
    rows = x.is_contiguous(memory_format=torch.channels_last)
    types = (x.dtype, weight.dtype, torch.get_float32_matmul_precision(), rows, mask is None)
    return (tuple(x.shape), tuple(offset.shape[2:]), weight.shape[0], groups, tuple(geometry), types)


@deform_fused.register_fake
def _fake(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    geometry: Sequence[int],
    choice: str,
) -> Tensor:
    return weight.new_empty(x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])


@_backward.register_fake
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    groups: int,
    geometry: Sequence[int],
    choice: str,
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_mask = offset.new_empty(0 if mask is None else mask.shape)
    grad_x = torch.empty_like(x) if with_x else x.new_empty(0)
    return grad_x, offset.new_empty(offset.shape), grad_mask, weight.new_empty(weight.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, mask, weight, bias, ctx.groups, ctx.geometry, ctx.choice = inputs
    ctx.bias_type = None if bias is None else bias.dtype
    ctx.save_for_backward(x, offset, mask, weight)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, offset, mask, weight = ctx.saved_tensors
    with_x = ctx.needs_input_grad[0]
    grad_x, grad_offset, grad_mask, grad_weight = _backward(
        grad, x, offset, mask, weight, ctx.groups, ctx.geometry, ctx.choice, with_x
    )
    exact = torch.promote_types(grad.dtype, torch.float32)
    grad_bias = None if ctx.bias_type is None else grad.sum((0, 2, 3), dtype=exact).to(ctx.bias_type)
    return (
        grad_x if with_x else None, grad_offset, None if mask is None else grad_mask, grad_weight, grad_bias,
        None, None, None,
    )  # fmt: skip


deform_fused.register_autograd(_gradient, setup_context=_keep_inputs)
