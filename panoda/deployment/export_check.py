"""Whether an exported file is the model: both take the same images, and every pixel is compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panoda.data.loading.transforms import normalise
from panoda.deployment.exported import ExportCard, ExportedModel

AGREEMENT = 0.999
"""Share of pixels whose label must be that of the model."""
TOLERANCE = 1e-3
"""Largest difference of a logit."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """One comparison of the file with the model: batch, size, differences."""

    shape: tuple[int, int, int]
    difference: float | None
    agreement: float


def sample_images(shape: tuple[int, int, int], about: ExportCard, *, seed: int) -> Tensor:
    """(N, 3, H, W) as the file takes them: left half noise, right half waves and edges."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = shape
    noise = torch.rand(count, 3, height, width, generator=generator)
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None]
    phase = torch.rand(count, 3, 1, 1, generator=generator)
    waves = 0.5 + 0.35 * torch.sin(2 * torch.pi * (3 * x + 2 * y + phase))
    picture = torch.where((8 * x).floor() % 2 == (6 * y).floor() % 2, waves, 1 - waves**2)
    images = (255 * torch.where(x < 0.5, noise, picture)).round().to(torch.uint8)
    return images if about.input == "uint8" else normalise(images)


def checked(graph: Run, exported: ExportedModel, size: tuple[int, int], *, tolerance: float) -> list[Check]:
    """Compare at one or two shapes; ValueError where the file is not the model."""
    about = exported.card
    batch = about.batch or 1
    shapes = [(batch, *size)]
    if about.batch is None or about.height is None:
        shapes.append((about.batch or 2, *(_other(size, about) if about.height is None else size)))
    checks = [_compare(graph, exported, shape) for shape in shapes]
    bad = [
        c
        for c in checks
        if c.agreement < AGREEMENT or (c.difference is not None and not c.difference <= tolerance)
    ]
    if bad:
        found = "; ".join(
            f"{c.shape[0]} x {c.shape[1]}x{c.shape[2]}: {100 * c.agreement:.3f} % of the labels equal, "
            f"logits differ by up to {'?' if c.difference is None else f'{c.difference:.2g}'}"
            for c in bad
        )
        raise ValueError(
            f"the exported file is not the model ({found}); expected {100 * AGREEMENT} % and {tolerance:g}; "
            "nothing was written. Try another --opset or a fixed size; raise --tolerance if the labels agree"
        )
    return checks


def _other(size: tuple[int, int], about: ExportCard) -> tuple[int, int]:
    """A second size: about three quarters of the first, of another shape, and odd: no stride divides it."""

    def shrunk(side: int, factor: float) -> int:
        return max(math.ceil(side * factor), about.smallest) | 1

    height, width = shrunk(size[0], 0.8), shrunk(size[1], 0.7)
    return (height, width) if (height, width) != size else (height + 2, width + 4)


def _compare(graph: Run, exported: ExportedModel, shape: tuple[int, int, int]) -> Check:
    images = sample_images(shape, exported.card, seed=shape[0])
    with torch.no_grad():
        wanted, found = graph(images), exported.raw(images)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ValueError(
            f"the exported file gives {found.dtype} {tuple(found.shape)}, the model {wanted.dtype} "
            f"{tuple(wanted.shape)}; nothing was written"
        )
    if exported.card.output == "labels":
        return Check(shape, None, (wanted == found).float().mean().item())
    same = (wanted.argmax(dim=1) == found.argmax(dim=1)).float().mean().item()
    return Check(shape, (wanted - found).abs().max().item(), same)
