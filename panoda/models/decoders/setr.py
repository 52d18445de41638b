"""SETR's heads on the maps of a plain ViT: naive, progressive upsampling (PUP), multi-level (MLA).

Source: SETR (CVPR 2021, arXiv 2012.15840), section 3.3, with the widths, input norms and loss weights of
its released configurations in MMSegmentation (auxiliary weight 0.4 each; MLA's levels deepest first).
Checked against numbers of MMSegmentation's heads with shared weights.

Where maps are only resized before a 1x1 prediction, the prediction comes first here: both commute, and
K channels are cheaper to resize than 256. Sizes are those of a patch of 16 pixels (x2 four times, x4);
with other patches the maps are resized to the strides that these give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from panoda.models.core.head import AuxiliaryHeads, ConvBlock, Decoder, prediction, resize
from panoda.models.encoders.layers import cells_of

AUXILIARY_WEIGHT = 0.4


class SETRDecoder(Decoder, ABC):
    """What the three heads share: maps of one stride, and auxiliary heads on them.

    The encoder hands over its blocks' outputs without a norm: each head begins with a LayerNorm.

    Attributes:
        auxiliary_kernel: Kernel size of the auxiliary heads' first layer.
        heads: Auxiliary heads.
    """

    needs_pyramid = False
    default_width = 256
    auxiliary_kernel: ClassVar[int] = 1

    def __init__(
        self,
        channels: Sequence[int],
        *,
        strides: Sequence[int],
        num_classes: int,
        width: int | None = None,
        auxiliary_weights: Sequence[float] | None = None,
    ) -> None:
        """Build for ``channels`` of maps that all have one stride.

        Args:
            channels: Of the maps, shallowest first; SETR takes four.
            strides: Of the maps, all equal: the encoder's patch size.
            num_classes: K.
            width: Channels of the features; None for those of the published model.
            auxiliary_weights: Loss weight of an auxiliary head on each map from the first on, 0 for none;
                None for 0.4 on every map that has one in the published model.

        Raises:
            ValueError: as ``Decoder``, strides that differ or are below 8, more weights than maps.
        """
        width = self.default_width if width is None else width
        super().__init__(channels, strides=strides, num_classes=num_classes, width=width)
        if len(set(self.strides)) > 1 or self.strides[0] < 8:
            raise ValueError(
                f"{self.name} wants maps of one stride, at least 8, such as a ViT's; the encoder gives "
                f"strides {self.strides}; choose a ViT without neck, or a decoder for pyramids"
            )
        self.build()
        if auxiliary_weights is None:
            auxiliary_weights = (AUXILIARY_WEIGHT,) * self.auxiliary_maps()
        self.heads = AuxiliaryHeads(
            self.channels,
            auxiliary_weights,
            num_classes=num_classes,
            width=self.auxiliary_width(),
            kernel_size=self.auxiliary_kernel,
            norm=True,
        )

    @abstractmethod
    def build(self) -> None:
        """Make the layers of the main head."""

    def auxiliary_maps(self) -> int:
        """Number of maps with an auxiliary head in the published model: all but the last."""
        return len(self.channels) - 1

    def auxiliary_width(self) -> int:
        """Channels of the auxiliary heads."""
        return self.width

    def auxiliary(self, stages: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        """(Loss weight, logits at the maps' stride) of every auxiliary head."""
        return self.heads(self.checked(stages))

    def size_at(self, x: Tensor, stride: int) -> tuple[int, int]:
        """Height and width of a map ``x`` at ``stride`` instead of the encoder's, rounded up."""
        height, width = (cells_of(side * self.strides[0], stride) for side in x.shape[2:])
        return height, width


class SETRNaiveDecoder(SETRDecoder):
    """A 1x1 ConvBlock on the last map, a prediction; the logits are resized in one go."""

    name = "setr_naive"

    def build(self) -> None:
        """Make the layers of the main head."""
        self.feature_stride = self.strides[-1]
        self.norm = LayerNorm2d(self.channels[-1], eps=1e-6)
        self.block = ConvBlock(self.channels[-1], self.width, 1)
        self.predict = prediction(self.width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, h, w) and features (N, width, h, w) at the maps' stride."""
        features = self.block(self.norm(self.checked(stages)[-1]))
        return self.predict(features), features


class SETRPUPDecoder(SETRDecoder):
    """Four 3x3 ConvBlocks on the last map, each followed by upsampling x2 up to full resolution."""

    name = "setr_pup"
    auxiliary_kernel = 3

    def build(self) -> None:
        """Make the layers of the main head."""
        width, last = self.width, self.channels[-1]
        self.norm = LayerNorm2d(last, eps=1e-6)
        self.blocks = nn.ModuleList(ConvBlock(found, width, 3) for found in (last, width, width, width))
        self.predict = prediction(width, self.num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (N, K, H, W) and features (N, width, H/4, W/4): the third block's output.

        H and W are the maps' sides times their stride: those of the image where the stride divides it.
        """
        last = self.checked(stages)[-1]
        x = resize(self.blocks[0](self.norm(last)), self.size_at(last, 8))
        x = resize(self.blocks[1](x), self.size_at(last, 4))
        features = self.blocks[2](x)
        x = self.blocks[3](resize(features, self.size_at(last, 2)))
        return resize(self.predict(x), self.size_at(last, 1)), features


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

    def build(self) -> None:
        """Make the layers of the main head."""
        count, inner = len(self.channels), self.auxiliary_width()
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

    def auxiliary_maps(self) -> int:
        """Every map."""
        return len(self.channels)

    def auxiliary_width(self) -> int:
        """Half the width of the features: 256 as published."""
        return max(1, self.width // 2)

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
