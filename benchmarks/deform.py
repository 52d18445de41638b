"""Medians of our deformable convolution beside torchvision's, as a Markdown table.

Run ``python benchmarks/deform.py --threads 1``; rows are the deformable layers of a model at batch 4.
The backward pass covers every gradient that training needs (the image has none).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from panoda.models.decoder import DMLPDecoder
from panoda.models.encoders import SHAPES
from panoda.models.ops import deform_conv2d
from panoda.models.registry import NANO, NANO_WIDTH


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


def prepare(case: Case, *, device: str, batch: int) -> tuple[list[Tensor], tuple[int, int]]:
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


def measure(functions: list[Callable[[], object]], *, rounds: int, device: str) -> list[float]:
    """Median milliseconds of each, measured in turns so that a busy moment hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize(device)
            if turn:
                own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def row(case: Case, *, rounds: int, device: str, batch: int) -> str:
    """One line of the table."""
    inputs, geometry = prepare(case, device=device, batch=batch)

    def forward(operator: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                operator(*inputs, *geometry)

        return run

    def both(operator: Callable[..., Tensor]) -> Callable[[], object]:
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        return lambda: torch.autograd.grad(operator(*inputs, *geometry).square().sum(), leaves)

    medians = measure(
        [forward(ours), forward(theirs), both(ours), both(theirs)], rounds=rounds, device=device
    )
    cells = [f"{value:.2f}" for value in medians]
    ratios = [f"{medians[1] / medians[0]:.1f}x", f"{medians[3] / medians[2]:.1f}x"]
    return f"| {case.name} | {cells[0]} | {cells[1]} | {ratios[0]} | {cells[2]} | {cells[3]} | {ratios[1]} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["trans4pass_nano", "trans4pass_t"], choices=SHAPES)
    parser.add_argument("--sizes", nargs="+", default=["128x256", "96x512"], help="HEIGHTxWIDTH of images")
    parser.add_argument("--batch", type=int, default=4, help="images per call")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=7, help="calls per median")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"Milliseconds, batch {arguments.batch}, {arguments.threads} thread(s), {arguments.device}\n")
    print("| layer | forward, ours | torchvision | ratio | forward + backward, ours | torchvision | ratio |")
    print("|---|---|---|---|---|---|---|")
    for model in arguments.models:
        for size in arguments.sizes:
            height, width = (int(part) for part in size.split("x"))
            for case in cases(model, height, width):
                print(
                    row(case, rounds=arguments.rounds, device=arguments.device, batch=arguments.batch),
                    flush=True,
                )


if __name__ == "__main__":
    main()
