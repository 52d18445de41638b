"""Our deformable convolution beside torchvision's, on the deformable layers of a model.

The backward pass covers every gradient that training needs (the image has none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from benchmarks.timing import Row, Settings, interleaved
from panoda.models.core.registry import NANO, NANO_WIDTH
from panoda.models.decoders.dmlp import DMLPDecoder
from panoda.models.deform.ops import deform_conv2d
from panoda.models.encoders.factory import SHAPES


@dataclass(frozen=True)
class Case:
    """One deformable layer on one input."""

    name: str
    channels: int
    out_channels: int
    size: tuple[int, int]
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    image: bool = False


def cases(model: str, height: int, width: int) -> list[Case]:
    """The patch embedding, and projection and MLP of the first and the last stage."""
    sizes, embedding = SHAPES[model], NANO_WIDTH if model == NANO else DMLPDecoder.default_width
    where = f"{model} {height}x{width}"
    found = [Case(f"{where} embed", 3, sizes.channels[0], (height, width), 7, 4, image=True)]
    for stage in (0, 2):
        size = (height // 4 // 2**stage, width // 4 // 2**stage)
        found.append(Case(f"{where} project {stage + 1}", sizes.channels[stage], embedding, size, 3))
        found.append(Case(f"{where} mlp {stage + 1}", embedding, embedding, size, groups=embedding))
    return found


def ours(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int) -> Tensor:
    """Our operator."""
    return deform_conv2d(x, offset, weight, mask=mask, stride=stride, padding=padding)


def theirs(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int) -> Tensor:
    """The operator of torchvision."""
    return torchvision.ops.deform_conv2d(x, offset, weight, stride=stride, padding=padding, mask=mask)


def prepare(case: Case, *, device: torch.device, batch: int) -> tuple[list[Tensor], tuple[int, int]]:
    """Inputs (x, offset, weight, mask) with offsets of about one pixel, and (stride, padding)."""
    generator = torch.Generator().manual_seed(0)
    padding = case.kernel // 2
    height, width = ((s + 2 * padding - case.kernel) // case.stride + 1 for s in case.size)
    taps = case.groups * case.kernel**2
    shapes = [
        (batch, case.channels, *case.size),
        (batch, 2 * taps, height, width),
        (case.out_channels, case.channels, case.kernel, case.kernel),
        (batch, taps, height, width),
    ]
    tensors = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    for tensor in tensors[int(case.image) :]:
        tensor.requires_grad_()
    return tensors, (case.stride, padding)


def rows(settings: Settings) -> Iterator[Row]:
    """One row per layer of the nano and the T model, batch 4 (2 with ``quick``)."""
    models = ["trans4pass_nano"] if settings.quick else ["trans4pass_nano", "trans4pass_t"]
    sizes = [(32, 64)] if settings.quick else [(400, 2048)] if settings.published else [(128, 256), (96, 512)]
    for model in models:
        for size in sizes:
            for case in cases(model, *size):
                yield row(case, settings, batch=1 if settings.published else 4)


def row(case: Case, settings: Settings, *, batch: int) -> Row:
    """Milliseconds of both operators, forward and with the backward pass."""
    inputs, geometry = prepare(case, device=settings.device, batch=batch)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def forward(operator: Callable[..., Tensor]) -> Callable[[], object]:
        return torch.no_grad()(lambda: operator(*inputs, *geometry))

    def both(operator: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(operator(*inputs, *geometry).square().sum(), leaves)

    functions = {
        "forward, ours": forward(ours),
        "forward, torchvision": forward(theirs),
        "both, ours": both(ours),
        "both, torchvision": both(theirs),
    }
    seconds = interleaved(functions, repeats=settings.repeats, device=settings.device)
    return {
        "layer": case.name,
        **{f"{name} ms": 1e3 * value for name, value in seconds.items()},
        "ratio forward": seconds["forward, torchvision"] / seconds["forward, ours"],
        "ratio both": seconds["both, torchvision"] / seconds["both, ours"],
    }
