"""What every decoder has in common: its attributes, the checks of its inputs, its small parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

PYRAMID = (4, 8, 16, 32)


class Decoder(nn.Module):
    """A decoder: an encoder's maps -> logits, and features for prototypes and MPA.

    ``decoder(stages)`` takes maps (N, C_i, h_i, w_i) and gives logits (N, K, h, w), to be resized to
    the image with ``align_corners``, and features (N, width, h', w') at ``feature_stride``.

    Attributes:
        name: Name under which ``create_decoder`` builds it.
        needs_pyramid: Whether it wants strides 4, 8, 16, 32; False takes the maps of a ViT as they come.
        has_auxiliary_heads: Whether it takes ``auxiliary_weights``.
        align_corners: How the published model resizes its maps and, in the end, its logits.
        default_width: Published width.
        channels: Channels of the maps.
        strides: Pixels of the image per pixel of each map.
        num_classes: K, without ignore.
        width: Channels of the features.
        feature_stride: Pixels of the image per pixel of the features.
        predict: The last 1x1 convolution, to K channels.
        heads: The auxiliary heads, if it has any.
    """

    name: ClassVar[str]
    needs_pyramid: ClassVar[bool] = True
    has_auxiliary_heads: ClassVar[bool] = False
    align_corners: ClassVar[bool] = False
    default_width: ClassVar[int]
    feature_stride: int = 4
    predict: nn.Conv2d
    heads: AuxiliaryHeads

    def __init__(
        self,
        channels: Sequence[int],
        *,
        num_classes: int,
        width: int | None = None,
        strides: Sequence[int] = PYRAMID,
        auxiliary_weights: Sequence[float] | None = None,
    ) -> None:
        """Check and keep what every decoder is told, and ``build`` it.

        Args:
            width: Channels of the features; None for the published width.
            auxiliary_weights: Loss weights of the auxiliary heads; None for the published ones.

        Raises:
            ValueError: a width below 1, or strides that are not those of a pyramid where one is needed.
        """
        super().__init__()
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.num_classes, self.width = num_classes, self.default_width if width is None else width
        self.auxiliary_weights = auxiliary_weights
        if self.width < 1:
            raise ValueError(
                f"{self.name}: width is {width}; expected at least 1, published: {self.default_width}"
            )
        if self.needs_pyramid and self.strides != PYRAMID:
            raise ValueError(
                f"{self.name} wants four maps at strides {PYRAMID}, the encoder gives {self.strides}; "
                "put the pyramid neck behind it, or choose a decoder that takes its maps as they come"
            )
        self.build()

    def build(self) -> None:
        """Make the layers; a decoder may do that in an ``__init__`` of its own instead."""

    def auxiliary(self, stages: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        """(loss weight, logits (N, K, h_i, w_i)) of every auxiliary head; for training alone.

        The logits are to be resized to the label with ``align_corners`` as those of ``forward`` are.
        """
        return self.heads(self.checked(stages)) if self.has_auxiliary_heads else []

    def checked(self, stages: Sequence[Tensor]) -> Sequence[Tensor]:
        """The maps, if they are as many and as wide as the decoder was built for.

        Raises:
            ValueError: another number of maps, or other channels.
        """
        found = tuple(stage.shape[1] for stage in stages)
        if found != self.channels:
            raise ValueError(
                f"{self.name} was built for {len(self.channels)} maps of {self.channels} channels, "
                f"got {len(found)} of {found}; build it with the encoder's channels and strides"
            )
        return stages


class ConvBlock(nn.Module):
    """Convolution without bias (size kept), BatchNorm, ReLU: the unit of most published heads."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, H, W)."""
        return self.activate(self.conv(x))

    def activate(self, x: Tensor) -> Tensor:
        """BatchNorm and ReLU on what the convolution gave.

        BatchNorm has no variance of a single value per channel (a map pooled to 1x1 in a batch of one),
        so its running statistics stand in for those of the batch. Several processes have more than one.
        """
        single = x.shape[0] * x.shape[2] * x.shape[3] == 1 and not dist.is_initialized()
        if self.training and single:
            norm = self.norm
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            x = self.norm(x)
        return F.relu(x)


def prediction(in_channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to class logits; starts small (deviation 0.01), as published heads do."""
    predict = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(predict.weight, std=0.01)
    nn.init.zeros_(predict.bias)  # type: ignore[arg-type]
    return predict


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners=False: (N, C, H, W) -> (N, C, *size).

    It never asks whether there is anything to resize: an exported model would be bound to the answer.
    """
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class AuxiliaryHeads(nn.Module):
    """Two-layer heads (ConvBlock, 1x1 prediction) on some of the encoder's maps, for a loss of their own.

    Attributes:
        weights: Loss weight of each map's head; a map of weight 0 has none.
        heads: The heads under the position of their map.
    """

    def __init__(
        self,
        channels: Sequence[int],
        weights: Sequence[float],
        *,
        num_classes: int,
        width: int,
        kernel_size: int,
        norm: bool = False,
    ) -> None:
        """Build a head on map i for every weight i above 0; ``norm`` begins it with a LayerNorm.

        Raises:
            ValueError: more weights than maps, or one that is negative or not finite.
        """
        super().__init__()
        self.weights = tuple(float(weight) for weight in weights)
        if len(self.weights) > len(channels) or any(w < 0 or not math.isfinite(w) for w in self.weights):
            raise ValueError(
                f"auxiliary weights are {self.weights} for {len(channels)} maps; expected at most one finite "
                "weight per map, from the first map on, 0 for a map without auxiliary head"
            )
        self.heads = nn.ModuleDict()
        for position, (found, weight) in enumerate(zip(channels, self.weights, strict=False)):
            if weight > 0:
                layers: list[nn.Module] = [LayerNorm2d(found, eps=1e-6)] if norm else []
                layers += [ConvBlock(found, width, kernel_size), prediction(width, num_classes)]
                self.heads[str(position)] = nn.Sequential(*layers)

    def forward(self, stages: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        """Maps -> (loss weight, logits (N, K, h_i, w_i)) of every head."""
        return [(self.weights[int(i)], head(stages[int(i)])) for i, head in self.heads.items()]
