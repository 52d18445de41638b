"""The models, images and labels that both sides of a benchmark are given: Trans4PASS T, 19 classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.model import ReferenceModel
from panoda.config.scenarios import load_scenario
from panoda.labels import IGNORE_INDEX
from panoda.methods.mpa import MPAParams
from panoda.models.core.registry import create_model
from panoda.models.core.segmenter import Segmenter

CLASSES = 19
SCENARIOS = Path(__file__).parents[1] / "scenarios"


@dataclass(frozen=True)
class Sizes:
    """Height and width of source and target, images per domain."""

    source: tuple[int, int]
    target: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        """As tables show it."""
        (h, w), (th, tw) = self.source, self.target
        return f"{w}x{h} + {tw}x{th}, batch {self.batch}"


PUBLISHED = Sizes((512, 1024), (400, 2048), 2)
SMALL = Sizes((256, 512), (200, 1024), 1)
QUICK = Sizes((64, 96), (64, 128), 1)


def models(seed: int, device: torch.device) -> tuple[Segmenter, ReferenceModel]:
    """Ours and the reference with the same weights, without stochastic depth.

    Offsets and modulators of a new model are zero; here they are about a pixel, as after training.
    """
    torch.manual_seed(seed)
    ours = create_model("trans4pass_t", num_classes=CLASSES, drop_path=0.0)
    for name, module in ours.named_modules():
        if name.endswith(("offset_conv", "modulator_conv", "pointwise")) and isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
    reference = ReferenceModel(CLASSES)
    reference.load_state_dict(ours.state_dict())
    return ours.to(device), reference.to(device)


def pictures(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """(count, 3, H, W) uint8: smooth shapes and noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, max(2, size[0] // 32), max(2, size[1] // 32), generator=generator)
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    noise = torch.rand(count, 3, *size, generator=generator)
    return ((0.9 * smooth + 0.1 * noise) * 255).to(torch.uint8)


def labels(count: int, size: tuple[int, int], seed: int, *, ignored: float) -> Tensor:
    """(count, H, W) int64 in blocks of 16 pixels, a share of them 255."""
    generator = torch.Generator().manual_seed(seed)
    cells = (count, 1, -(-size[0] // 16), -(-size[1] // 16))
    coarse = torch.randint(CLASSES, cells, generator=generator)
    coarse[torch.rand(cells, generator=generator) < ignored] = IGNORE_INDEX
    wide = coarse.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    return wide[:, 0, : size[0], : size[1]].contiguous()


def adapt_params() -> MPAParams:
    """The published recipe: section adapt of scenario cs2dp."""
    return load_scenario("cs2dp", folder=SCENARIOS).adapt
