"""timm's hierarchical networks (PVTv2, ConvNeXt, Swin, ResNet, ...) as encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor

from panoda.models.encoders.layers import (
    PVT_LAST,
    PVT_MATCHER,
    LayeredEncoder,
    cells_of,
    checked_indices,
    cut_to,
    layer_numbers,
    pad_to_multiple,
)
from panoda.models.encoders.timm_models import build, normalisation

_PROBE = (64, 96)  # an image size (height, width) that hardly any network was trained for


class TimmPyramid(LayeredEncoder):
    """The feature maps that a network of timm states, for images of any size.

    Attributes:
        net: timm's network up to the last map taken; its weights keep timm's names after ``net.``.
        num_layers: Numbers that ``layer_of`` can give; a decoder comes after the last one.
        mean, std: What timm's published weights want images to be normalised with.
    """

    def __init__(self, name: str, *, drop_path: float = 0.1, indices: Sequence[int] | None = None) -> None:
        """Build with random weights; nothing is downloaded.

        Args:
            drop_path: Stochastic depth of the last block, where the network has any.
            indices: Which of the stated maps to give; None: the deepest of each stride, four up to 32.

        Raises:
            ValueError: unknown model, one without a pyramid of strides, one tied to an image size, or
                indices it does not have.
        """
        super().__init__()
        net: Any = build(name, drop_path_rate=drop_path, strict_img_size=False)
        stated = _stated(net, name)
        self.indices = _chosen(stated, indices, name)
        self.channels = tuple(stated[i][0] for i in self.indices)
        self.strides = tuple(stated[i][1] for i in self.indices)
        self.mean, self.std = normalisation(net)
        net.prune_intermediate_layers(list(self.indices), prune_norm=True, prune_head=True)
        self.net = net
        # PVTv2's overlapping embeddings round sizes up by themselves; others may cut off what is left over.
        pvt = isinstance(net, PyramidVisionTransformerV2)
        self.multiple = 1 if pvt else max(self.strides)
        self._matcher = PVT_MATCHER if pvt else net.group_matcher(coarse=False)
        self._last = PVT_LAST if pvt else ()
        self.num_layers = max(self._numbers.values()) + (1 if pvt else 2)
        _probe(self, name)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> maps (N, C_i, H / stride_i, W / stride_i), sizes rounded up."""
        height, width = x.shape[2:]
        maps = self._maps(pad_to_multiple(x, self.multiple))
        return [
            cut_to(y, cells_of(height, stride), cells_of(width, stride))
            for y, stride in zip(maps, self.strides, strict=True)
        ]

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self.net.forward_intermediates(x, indices=list(self.indices), intermediates_only=True)

    def no_weight_decay(self) -> set[str]:
        """Names of relative-position tables and other embeddings that do not decay."""
        named: Any = getattr(self.net, "no_weight_decay", set)()
        own = {name for name, _ in self.named_parameters()}
        return super().no_weight_decay() | ({f"net.{name}" for name in named} & own)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        numbers = layer_numbers(self.net, self._matcher, last=self._last)
        return {f"net.{key}": number for key, number in numbers.items()}


def _stated(net: Any, name: str) -> list[tuple[int, int]]:
    """(channels, stride) of every map that the network states."""
    info = getattr(net, "feature_info", None)
    if not info or not hasattr(net, "forward_intermediates"):
        raise ValueError(f"timm's {name!r} states no feature maps; choose another one with `features_only`")
    return [(entry["num_chs"], entry["reduction"]) for entry in info]


def _chosen(stated: list[tuple[int, int]], indices: Sequence[int] | None, name: str) -> tuple[int, ...]:
    """Checked indices of the maps to give, increasing."""
    strides = [stride for _, stride in stated]
    if len(set(strides)) == 1 and len(strides) > 1:
        raise ValueError(
            f"timm's {name!r} has no pyramid, all its strides are {strides[0]}; try 'vit:{name}'"
        )
    if indices is None:
        deepest = {stride: i for i, stride in enumerate(strides) if stride <= 32}
        return tuple(sorted(deepest.values())[-4:])
    return checked_indices(indices, len(strides), name, f"numbers of its maps {{}}, of strides {strides}")


def _probe(encoder: TimmPyramid, name: str) -> None:
    """ValueError unless an image of an unusual size gives the stated maps."""
    weight = next(encoder.parameters())
    mode = encoder.training
    try:
        with torch.no_grad():
            maps = encoder.eval()._maps(weight.new_zeros(1, 3, *_PROBE))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"timm's {name!r} takes no images of {_PROBE[0]}x{_PROBE[1]} pixels, so it cannot serve for any "
            f"size ({reason}); choose a network that is not tied to an image size"
        ) from error
    finally:
        encoder.train(mode)
    found = [tuple(y.shape[1:]) for y in maps]
    expected = [
        (channels, _PROBE[0] // stride, _PROBE[1] // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    if found != expected:
        raise ValueError(f"timm's {name!r} states maps {expected} but gives {found}; choose another network")
