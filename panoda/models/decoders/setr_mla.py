"""SETR-MLA (arXiv 2012.15840, section 3.3): multi-level feature aggregation of a ViT's maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from panoda.models.core.head import ConvBlock, prediction, resize
from panoda.models.core.setr import SETRDecoder


class SETRMLADecoder(SETRDecoder):
    """Maps aggregated from the deepest to the shallowest, each through a branch of its own, side by side.

    The number of maps divides the width. The auxiliary heads are two-layer networks on the encoder's
    maps, as the paper says; the released configurations have 1x1 predictions on the aggregated maps
    instead, which would be computed twice.

    Attributes:
        norms: LayerNorms of the maps.
        reduce: 1x1 ConvBlocks to half the width, before the aggregation.
        extract: 3x3 ConvBlocks after it, deepest map first.
        branches: Two 3x3 ConvBlocks each, to an equal share of the width, deepest map first.
    """

    name = "setr_mla"
    default_width = 512
    auxiliary_on_last, auxiliary_share = True, 2

    def build(self) -> None:
        """Make the layers of the main head."""
        count, inner = len(self.channels), max(1, self.width // 2)
        if self.width % count:
            raise ValueError(
                f"setr_mla: width is {self.width}; its {count} maps share it equally, so it must be a "
                f"multiple of {count}"
            )
        share = self.width // count
        self.norms = nn.ModuleList(LayerNorm2d(found, eps=1e-6) for found in self.channels)
        self.reduce = nn.ModuleList(ConvBlock(found, inner, 1) for found in self.channels)
        self.extract = nn.ModuleList(ConvBlock(inner, inner, 3) for _ in self.channels)
        self.branches = nn.ModuleList(
            nn.Sequential(ConvBlock(inner, share, 3), ConvBlock(share, share, 3)) for _ in self.channels
        )
        self.predict = prediction(self.width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, H/4, W/4) and features (N, width, H/4, W/4)."""
        size = self.size_at(self.checked(stages)[0], 4)
        reduced = [
            block(norm(stage)) for block, norm, stage in zip(self.reduce, self.norms, stages, strict=True)
        ]
        total, found = None, []
        for x, extract, branch in zip(reversed(reduced), self.extract, self.branches, strict=True):
            total = x if total is None else total + x
            found.append(resize(branch(extract(total)), size))
        features = torch.cat(found, dim=1)
        return self.predict(features), features
