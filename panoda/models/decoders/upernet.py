"""UPerNet's head.

Sources: UPerNet (ECCV 2018, arXiv 1807.10221) and FCN (arXiv 1411.4038), with the widths, dropout and
auxiliary head of their released configurations in MMSegmentation, which BEiT, MAE, Swin and ConvNeXt
follow. Checked against transformers' UperNetHead and UperNetFCNHead with shared weights.

segmentation-models-pytorch has a UPerNet too, but not the published one: it begins with a LayerNorm
on every map, which weights trained elsewhere do not have. And it would be a dependency of every
installation for one class, while transformers' head is private to its models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoda.models.core.head import AuxiliaryHeads, ConvBlock, Decoder, prediction, resize
from panoda.models.encoders.layers import exporting

POOL_SCALES = (1, 2, 3, 6)
AUXILIARY_MAP = 2  # the third stage, stride 16


class PyramidPooling(nn.Module):
    """PSPNet's pooling: the map beside averages of it over 1, 4, 9 and 36 regions, fused.

    Attributes:
        fuse: 3x3 ConvBlock over the map and all branches.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvBlock(in_channels, width, 1) for _ in POOL_SCALES)
        self.fuse = ConvBlock(in_channels + len(POOL_SCALES) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        pooled = [
            resize(branch(_pooled(x, scale)), x.shape[2:])
            for scale, branch in zip(POOL_SCALES, self.branches, strict=True)
        ]
        return self.fuse(torch.cat([x, *pooled], dim=1))


def _pooled(x: Tensor, scale: int) -> Tensor:
    """Averages over scale x scale regions, (N, C, scale, scale)."""
    apart = x.is_cuda and torch.are_deterministic_algorithms_enabled()
    if not (exporting() or apart):
        return F.adaptive_avg_pool2d(x, scale)
    # ONNX has no such pooling of maps of any size, and CUDA no deterministic gradient of it: the same
    # averages as two small matrix products.
    down, across = (_regions(side, scale, x) for side in x.shape[2:])
    rows = (x[:, :, None] * down[:, :, None]).sum(3)  # (N, C, scale, W)
    return (rows[:, :, :, None] * across).sum(4)


def _regions(side: int, scale: int, like: Tensor) -> Tensor:
    """(scale, side): row i averages cells floor(i * side / scale) up to ceil((i + 1) * side / scale)."""
    region = torch.arange(scale, device=like.device)[:, None]
    cell = torch.arange(side, device=like.device)[None]
    first, behind = region * side // scale, ((region + 1) * side + scale - 1) // scale
    inside = ((cell >= first) & (cell < behind)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class UPerNetDecoder(Decoder):
    """Pyramid pooling on the last stage, a feature pyramid, its fusion at stride 4, a prediction.

    Attributes:
        smooth: 3x3 ConvBlocks on the pyramid's levels but the last.
        fuse: 3x3 ConvBlock over all levels at stride 4, first stage first.
        heads: The auxiliary FCN head (one 3x3 ConvBlock of half the width) on the third stage.
    """

    name = "upernet"
    has_auxiliary_heads = True
    default_width = 512

    def build(self) -> None:
        """Make the layers; there is one auxiliary weight, or none for no such head.

        Raises:
            ValueError: more than one auxiliary weight.
        """
        width, weights = self.width, (0.4,) if self.auxiliary_weights is None else self.auxiliary_weights
        if len(weights) > 1:
            raise ValueError(
                f"upernet has one auxiliary head, on the third stage; got {len(weights)} weights {tuple(weights)}"
            )
        self.pooling = PyramidPooling(self.channels[-1], width)
        self.laterals = nn.ModuleList(ConvBlock(found, width, 1) for found in self.channels[:-1])
        self.smooth = nn.ModuleList(ConvBlock(width, width, 3) for _ in self.channels[:-1])
        self.fuse = ConvBlock(len(self.channels) * width, width, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.predict = prediction(width, self.num_classes)
        self.heads = AuxiliaryHeads(
            self.channels,
            [0.0] * AUXILIARY_MAP + list(weights),
            num_classes=self.num_classes,
            width=max(1, width // 2),
            kernel_size=3,
        )

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Stage outputs -> logits (N, K, H/4, W/4) and features (N, width, H/4, W/4)."""
        levels = [self.pooling(self.checked(stages)[-1])]
        for stage, lateral in zip(reversed(stages[:-1]), reversed(self.laterals), strict=True):
            levels.insert(0, lateral(stage) + resize(levels[0], stage.shape[2:]))
        first, *others = (block(level) for block, level in zip(self.smooth, levels[:-1], strict=True))
        others = [resize(level, first.shape[2:]) for level in (*others, levels[-1])]
        features = self.fuse(torch.cat([first, *others], dim=1))
        return self.predict(self.dropout(features)), features
