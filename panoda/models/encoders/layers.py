"""What encoders share: padding, layer numbers for layer-wise learning rates, parameters without decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

# timm's PVTv2 stages, the downsampling of a stage with its first block and its norm with its last one.
PVT_MATCHER: dict[str, Any] = {
    "stem": r"^patch_embed",
    "blocks": [
        (r"^stages\.(\d+)\.downsample", (0,)),
        (r"^stages\.(\d+)\.blocks\.(\d+)", None),
        (r"^stages\.(\d+)\.norm", (99999,)),  # timm's mark for "the group before"
    ],
}
PVT_LAST = ("stages.3.norm.",)
# Tables and tokens; norms, biases and other vectors are told by their single dimension.
_UNDECAYED = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "mask_token",
    "relative_position_bias_table",
    "rope.freqs",
)


def layer_numbers(
    module: nn.Module, matcher: dict[str, Any] | Callable[[str], Any], *, last: tuple[str, ...] = ()
) -> dict[str, int]:
    """Number of the layer of each parameter: 0 the embeddings, then one per block in order.

    Args:
        matcher: timm's ``group_matcher`` of it, whose groups are numbered.
        last: Prefixes of the names of final norms, which come after the last block.
    """
    numbers: dict[str, int] = group_parameters(module, matcher, reverse=True)
    after = max(numbers.values()) + 1
    return {name: after if last and name.startswith(last) else n for name, n in numbers.items()}


def without_decay(module: nn.Module) -> set[str]:
    """Names of the position embeddings, relative-position tables and class or register tokens."""
    return {name for name, _ in module.named_parameters() if name.endswith(_UNDECAYED)}


class LayeredEncoder(nn.Module):
    """What an optimiser asks of an encoder: which parameters do not decay, and in which layer each one is."""

    def no_weight_decay(self) -> set[str]:
        """Names of position tables, relative-position tables and class or register tokens."""
        return without_decay(self)

    def layer_of(self, name: str) -> int:
        """Layer of a parameter: 0 the embeddings and what blocks share, then one per block in order.

        A later stage's embedding belongs to its first block, a norm to the block before it, the final norm comes last.
        """
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return layer_numbers(self, PVT_MATCHER, last=PVT_LAST)


def checked_indices(indices: Sequence[int], count: int, name: str, what: str) -> tuple[int, ...]:
    """Increasing numbers below ``count`` of a network's ``what``; ValueError for others."""
    chosen = tuple(indices)
    if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < count:
        raise ValueError(
            f"indices {list(indices)} do not fit {name!r}; expected increasing {what.format(f'0 to {count - 1}')}"
        )
    return chosen


def exporting() -> bool:
    """A graph is traced for torch.export or ONNX; torch.compile is no export (PyTorch 2.11 says it is)."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Types as they come on the device of ``x``, whatever autocast says.

    A graph traced for export has fixed types; there the context would only become a subgraph of its own.
    Nor is there any autocast on ``meta``.
    """
    if exporting() or x.is_meta:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def pad_to_multiple(x: Tensor, multiple: int, *, wrap: bool = False) -> Tensor:
    """Extend (N, C, H, W) to the right and downwards until ``multiple`` divides both sides.

    The last row is repeated; so is the last column, or, with ``wrap``, columns from the left edge follow.
    """
    if multiple > 1 and _open(x):
        for dim in (2, 3):
            side = x.shape[dim]
            cells = torch.arange(cells_of(side, multiple) * multiple, device=x.device)
            x = x.index_select(dim, cells % side if wrap and dim == 3 else cells.clamp(max=side - 1))
        return x
    down, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    if right:
        x = F.pad(x, (0, right, 0, 0), mode="circular" if wrap else "replicate")
    return F.pad(x, (0, 0, 0, down), mode="replicate") if down else x


def cut_to(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left ``height`` x ``width`` cells of (N, C, H, W)."""
    if _open(x):
        for dim, side in ((2, height), (3, width)):
            x = x.index_select(dim, torch.arange(side, device=x.device))
        return x
    return x[:, :, :height, :width]


def cells_of(side: int, stride: int) -> int:
    """Cells of ``stride`` pixels that cover a side: the quotient rounded up.

    It is written as convolutions write their output, so that an exporter sees that both are the same.
    """
    return (side - 1) // stride + 1


def _open(x: Tensor) -> bool:
    """A graph for any size is traced: a question about a side would bind it to the answer."""
    return any(isinstance(side, torch.SymInt) for side in x.shape[2:])
