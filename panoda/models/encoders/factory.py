"""Encoders by name.

- ``trans4pass_nano``, ``_t``, ``_s``, ``_b3`` to ``_b5``: MiT shapes behind a deformable patch embedding.
- ``mit_b0`` to ``mit_b5``: the same shapes behind a plain one, SegFormer's encoder.
- ``pvt_v2_b0`` to ``pvt_v2_b5``: from timm.
- ``vit:NAME``: a plain ViT, BEiT or Eva (DINOv3) of timm, e.g. ``vit:vit_base_patch16_224.mae``.
- ``timm:NAME``: any other network of timm that states a pyramid of feature maps, e.g. ``timm:convnext_tiny``.

Every encoder has ``channels`` and ``strides``, one entry per map; ``forward(x)`` takes (N, 3, H, W), H and
W >= 32, and gives a list of maps (N, C_i, H / stride_i, W / stride_i), sizes rounded up. For layer-wise
learning rates ``layer_of(parameter)`` is 0 for embeddings and 1.. for blocks; the rate is multiplied by
``decay ** (num_layers - 1 - layer_of(parameter))`` and that of a decoder by one. ``no_weight_decay()`` names
the position tables and tokens that should not decay, besides everything of one dimension. ``mean`` and
``std`` are what the published weights want images to be normalised with; Trans4PASS, MiT and PVTv2 want
ImageNet's, which is what panoda feeds, while many ViT and BEiT weights want 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from panoda.models.encoders.pyramid import TimmPyramid
from panoda.models.encoders.trans4pass import Encoder
from panoda.models.encoders.vit import ViTEncoder


@dataclass(frozen=True)
class MitShape:
    """Blocks, widths and attention heads of the four stages."""

    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int] = (64, 128, 320, 512)
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)


# As published (SegFormer, table 6); nano is ours, sized for training on two CPU cores.
_MIT = {
    "b0": MitShape((2, 2, 2, 2), (32, 64, 160, 256)),
    "b1": MitShape((2, 2, 2, 2)),
    "b2": MitShape((3, 4, 6, 3)),
    "b3": MitShape((3, 4, 18, 3)),
    "b4": MitShape((3, 8, 27, 3)),
    "b5": MitShape((3, 6, 40, 3)),
}
_TRANS4PASS = {
    "nano": MitShape((1, 1, 1, 1), (24, 48, 96, 160), (1, 2, 4, 5)),
    "t": _MIT["b1"],
    "s": _MIT["b2"],
    **{size: _MIT[size] for size in ("b3", "b4", "b5")},
}
SHAPES = {
    **{f"trans4pass_{size}": shape for size, shape in _TRANS4PASS.items()},
    **{f"mit_{size}": shape for size, shape in _MIT.items()},
}
_PVT = tuple(f"pvt_v2_b{size}" for size in range(6))


def encoder_names() -> tuple[str, ...]:
    """Names of the encoders that are no ``vit:NAME`` or ``timm:NAME``."""
    return (*SHAPES, *_PVT)


def create_encoder(
    name: str, *, drop_path: float = 0.1, wrap: bool = False, indices: Sequence[int] | None = None
) -> nn.Module:
    """Build an encoder with random weights; nothing is downloaded.

    Args:
        name: One of ``encoder_names()``, ``vit:NAME`` or ``timm:NAME``.
        drop_path: Stochastic depth of the last block, at least 0 and below 1; it grows linearly from 0.
        wrap: Plain ViTs only, for full panoramas: positions close around the circle.
        indices: ``vit:`` blocks or ``timm:`` and ``pvt_v2`` maps to give, from 0; None: the usual ones.

    Raises:
        ValueError: unknown name, a drop_path outside 0..1, or an option the encoder does not have.
    """
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(f"drop_path is {drop_path}; expected a probability below 1")
    kind, _, rest = name.partition(":")
    if kind == "vit" and rest:
        return ViTEncoder(rest, drop_path=drop_path, wrap=wrap, indices=indices)
    if wrap:
        raise ValueError(
            f"wrap=True is for plain ViTs ('vit:NAME'); {name!r} has no position tables to close"
        )
    if kind == "timm" and rest:
        return TimmPyramid(rest, drop_path=drop_path, indices=indices)
    if name in _PVT:
        return TimmPyramid(name, drop_path=drop_path, indices=indices)
    if name not in SHAPES:
        known = ", ".join(encoder_names())
        raise ValueError(
            f"unknown encoder {name!r}; known: {known}, vit:NAME and timm:NAME with a model of timm"
        )
    if indices is not None:
        raise ValueError(f"{name!r} always gives its four stages; leave indices out (got {list(indices)})")
    shape = SHAPES[name]
    deformable = name.startswith("trans4pass")
    return Encoder(
        shape.depths, shape.channels, heads=shape.heads, drop_path=drop_path, deformable=deformable
    )
