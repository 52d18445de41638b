"""Launches the Triton kernels: memory layouts, block sizes and their tuning.

Outputs and gradients are the only new memory of the size of a map, besides one channels-last copy of x
where many channels share positions and x is not stored that way, and one float32 gradient of x. Block
sizes are tuned by ``triton.autotune`` at the first use of a layer's shape; sizes of the map enter
rounded to a power of two, so that a slightly larger image does not tune again.

Imports Triton: import this module only where that is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from panoda.models.deform import grid, rows
from panoda.models.deform.sampling_geometry import Geometry

# From here on a row of channels fills the loads of a warp.
_ROW_CHANNELS = 16
# Programs per launch that keep a large GPU busy; the pixels of the weight's gradient are shared out to it.
_PROGRAMS = 1024
# Outputs of a program, so that a sample is read once; outputs in one step of the sum over them.
_MOST_OUTPUTS = 128
_OUTPUTS_AT_ONCE = 32
_LARGEST = 2**31

_TYPES = {torch.float16: tl.float32, torch.bfloat16: tl.float32, torch.float32: tl.float32}


def interpreted() -> bool:
    """The kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` when Triton was imported)."""
    return not isinstance(rows.rows_forward, triton.JITFunction)


def unsuited(x: Tensor, offset: Tensor, weight: Tensor) -> str | None:
    """Why these tensors are not for the kernels, or None."""
    if x.dtype not in _TYPES or weight.dtype not in _TYPES:
        if not (interpreted() and x.dtype == weight.dtype == torch.float64):
            return f"{x.dtype} with weights of {weight.dtype}: the kernels take float32, bfloat16 and float16"
    out_pixels = offset.shape[2] * offset.shape[3]
    largest = max(x[0].numel(), offset[0].numel(), weight.shape[0] * out_pixels)
    if largest >= _LARGEST:
        return f"one image has {largest} values in a tensor: the kernels count to 2**31"
    if min(x.numel(), offset.numel(), weight.numel()) == 0:
        return "an empty tensor"
    return None


def forward(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    geometry: Sequence[int],
) -> Tensor:
    """(N, D, Ho, Wo) in the dtype of ``weight``; arguments as in ``panoda.models.deform.fused``."""
    layer = _Layer(x, offset, mask, weight, groups, geometry)
    out = offset.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:], dtype=weight.dtype)

    def tiles(meta: dict[str, Any]) -> tuple[int, int, int]:
        return triton.cdiv(layer.pixels, meta["BLOCK_P"]), triton.cdiv(layer.outputs, layer.block_d), layer.n

    kernel = _rows_forward if layer.rows else _grid_forward
    added = weight if bias is None else bias.contiguous()
    with layer.on_device():
        kernel[tiles](
            layer.x, layer.offset, layer.mask, layer.weight, added, out,
            *layer.numbers, BIASED=bias is not None, **layer.constants,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    groups: int,
    geometry: Sequence[int],
    *,
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless ``with_x``; in float32), offset, mask (empty without one) and weight."""
    layer = _Layer(x, offset, mask, weight, groups, geometry)
    grad = grad.to(weight.dtype).contiguous()
    grad_x = layer.zeros_like_x() if with_x else layer.x.new_empty(0)
    grad_offset = layer.offset.new_empty(offset.shape)
    grad_mask = layer.offset.new_empty(0 if mask is None else mask.shape)
    grad_weight = torch.zeros(layer.weight.shape, device=x.device, dtype=layer.exact)

    def slots(meta: dict[str, Any]) -> tuple[int, int, int]:
        per_program = 1 if layer.rows else meta["BLOCK_R"]
        return triton.cdiv(layer.pixels, meta["BLOCK_P"]), triton.cdiv(layer.slots, per_program), layer.n

    def shares(meta: dict[str, Any]) -> tuple[int, int, int]:
        if layer.rows:
            columns = layer.slots * triton.cdiv(layer.each, meta["BLOCK_C"])
        else:
            columns = triton.cdiv(layer.slots, meta["BLOCK_R"]) * layer.each
        blocks = triton.cdiv(layer.outputs, layer.block_d)
        images = layer.n * triton.cdiv(layer.pixels, meta["BLOCK_P"])
        return columns, blocks, max(1, min(images, _PROGRAMS // (columns * blocks)))

    first, second = (_rows_backward, _rows_weight) if layer.rows else (_grid_backward, _grid_weight)
    with layer.on_device():
        first[slots](
            grad, layer.x, layer.offset, layer.mask, layer.weight, grad_x, grad_offset, grad_mask,
            *layer.numbers, WITH_X=with_x, **layer.summing_outputs,
        )  # fmt: skip
        second[shares](
            grad, layer.x, layer.offset, layer.mask, grad_weight, *layer.numbers, **layer.constants
        )
    return grad_x, grad_offset, grad_mask, layer.unpacked(grad_weight).to(weight.dtype)


class _Layer:
    """One call's tensors in the kernels' layout, and the numbers that every kernel takes."""

    def __init__(
        self,
        x: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        weight: Tensor,
        groups: int,
        geometry: Sequence[int],
    ) -> None:
        shape = Geometry.unpacked(geometry)
        self.n, self.groups, self.each = x.shape[0], groups, x.shape[1] // groups
        self.outputs, self.slots = weight.shape[0], groups * shape.taps
        self.pixels = offset.shape[2] * offset.shape[3]
        self.rows = self.each >= _ROW_CHANNELS
        self.exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        if self.rows:
            self.x = x.contiguous(memory_format=torch.channels_last)
            by_tap = weight.reshape(self.outputs, groups, self.each, shape.taps)
            self.weight = by_tap.permute(1, 3, 2, 0).contiguous()  # (G, K, C/G, D)
        else:
            self.x, self.weight = x.contiguous(), weight.contiguous()
        self.offset = offset.contiguous()
        self.mask = self.offset if mask is None else mask.contiguous()
        self._weight_shape = weight.shape
        self.block_d = min(_MOST_OUTPUTS, max(16, triton.next_power_of_2(self.outputs)))
        tuning = (self.n * self.pixels).bit_length()
        self.numbers = (
            groups, self.each, self.outputs, *x.shape[2:], *offset.shape[2:], self.n, tuning
        )  # fmt: skip
        self.constants = {
            "MASKED": mask is not None,
            "ACC": tl.float64 if self.exact == torch.float64 else tl.float32,
            "PRECISION": _precision(weight.dtype),
            "GEOMETRY": (shape.taps, shape.kernel[1], *shape.stride, *shape.padding, *shape.dilation),
            "BLOCK_D": self.block_d,
        }
        # Where outputs are what is summed over.
        self.summing_outputs = {**self.constants, "BLOCK_D": min(_OUTPUTS_AT_ONCE, self.block_d)}

    def on_device(self) -> Any:
        """Launches go to the device of the tensors, not to the current one."""
        return torch.cuda.device_of(self.x)

    def zeros_like_x(self) -> Tensor:
        """Where the gradient of x is summed; x's shape in the layout of the kernel."""
        return torch.zeros_like(self.x, dtype=self.exact, memory_format=torch.preserve_format)

    def unpacked(self, grad_weight: Tensor) -> Tensor:
        """From the kernels' layout of the weight to (D, C, kh, kw)."""
        by_output = grad_weight.permute(3, 0, 2, 1) if self.rows else grad_weight
        return by_output.reshape(self._weight_shape).contiguous()


def _precision(dtype: torch.dtype) -> str:
    """How float32 factors are multiplied: three tf32 products come to float32's own precision."""
    if dtype != torch.float32:
        return "widened" if interpreted() and dtype == torch.bfloat16 else "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


# --- tuning ---------------------------------------------------------------------------------------


def _configs(inner: str) -> list[triton.Config]:
    """Block sizes to try: pixels, and channels or slots; the outputs of a program are given."""
    if interpreted():
        return [triton.Config({"BLOCK_P": 64, inner: 16})]
    # Eight values of a tile in a thread; with more, the kernels that gather value by value spill registers.
    tried = [(32, 16, 4, 2), (64, 16, 4, 2), (64, 32, 8, 2), (128, 16, 8, 2)]
    if inner == "BLOCK_C":
        tried = [
            (32, 32, 4, 2),
            (64, 32, 4, 2),
            (64, 32, 4, 3),
            (64, 64, 8, 2),
            (128, 32, 8, 2),
            (128, 64, 8, 2),
        ]
    return [
        triton.Config({"BLOCK_P": pixels, inner: width}, num_warps=warps, num_stages=stages)
        for pixels, width, warps, stages in tried
    ]


def _pruned(
    configs: list[triton.Config], arguments: dict[str, Any], *, GEOMETRY: tuple[int, ...], **_: Any
) -> list[triton.Config]:
    """Without blocks that are mostly padding; the first of them remains for the smallest layers."""
    pixels = arguments["out_height"] * arguments["out_width"]
    inner = {"BLOCK_C": arguments["each"], "BLOCK_R": max(16, arguments["groups"] * GEOMETRY[0])}

    def fits(config: triton.Config) -> bool:
        sizes = {"BLOCK_P": pixels, **inner}
        return all(block < 2 * sizes[name] for name, block in config.kwargs.items())

    return [config for config in configs if fits(config)] or configs[:1]


def _tuned(kernel: Any, inner: str, *, summed: list[str]) -> Any:
    """The kernel with tuned block sizes; ``summed`` are set to zero between trials."""
    return triton.autotune(
        configs=_configs(inner),
        key=["groups", "each", "outputs", "tuning"],
        prune_configs_by={"early_config_prune": _pruned},
        reset_to_zero=summed,
    )(kernel)


_rows_forward = _tuned(rows.rows_forward, "BLOCK_C", summed=[])
_rows_backward = _tuned(rows.rows_backward, "BLOCK_C", summed=["grad_x"])
_rows_weight = _tuned(rows.rows_weight, "BLOCK_C", summed=["grad_weight"])
_grid_forward = _tuned(grid.grid_forward, "BLOCK_R", summed=[])
_grid_backward = _tuned(grid.grid_backward, "BLOCK_R", summed=["grad_x"])
_grid_weight = _tuned(grid.grid_weight, "BLOCK_R", summed=["grad_weight"])
