"""Decoders by name: each is a file of ``panoda/models/decoders``, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from panoda.config import DECODERS
from panoda.models.core.head import Decoder


def decoder_class(name: str) -> type[Decoder]:
    """The decoder class in ``panoda/models/decoders/<name>.py``; ValueError lists the known names."""
    if name not in DECODERS:
        raise ValueError(f"unknown decoder {name!r}; known: {', '.join(DECODERS)}")
    module = importlib.import_module(f"panoda.models.decoders.{name}")
    found = [v for v in vars(module).values() if isinstance(v, type) and getattr(v, "name", None) == name]
    if len(found) != 1:
        raise ValueError(
            f"{module.__file__}: expected one decoder class with name = {name!r}, found {len(found)}"
        )
    return found[0]


def create_decoder(
    name: str,
    *,
    channels: Sequence[int],
    strides: Sequence[int],
    num_classes: int,
    width: int | None = None,
    auxiliary_weights: Sequence[float] | None = None,
) -> Decoder:
    """Build a decoder with random weights.

    Args:
        channels: Of the encoder's maps, shallowest first.
        strides: Of the encoder's maps: pixels of the image per pixel of the map.
        num_classes: K, without ignore.
        width: Channels of the features; None for the published width (SegFormer: that of MiT-B0 and B1;
            768 from B2 on).
        auxiliary_weights: Loss weights of the auxiliary heads; None for the published ones, () for no
            heads. SETR: one per map from the first on, 0 leaves a map out; UPerNet: one.

    Raises:
        ValueError: unknown name, maps or values that do not fit the decoder, or auxiliary weights for a
            decoder without auxiliary heads.
    """
    kind = decoder_class(name)
    if auxiliary_weights and not kind.has_auxiliary_heads:
        raise ValueError(
            f"{name} has no auxiliary heads to weight with {tuple(auxiliary_weights)}; leave the weights "
            "out, or choose a decoder that has some, such as upernet or setr_pup"
        )
    weights: dict[str, Any] = {"auxiliary_weights": auxiliary_weights} if kind.has_auxiliary_heads else {}
    width = kind.default_width if width is None else width
    return kind(channels, strides=strides, num_classes=num_classes, width=width, **weights)
