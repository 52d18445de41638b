"""Decoders by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from panoda.models.core.head import Decoder
from panoda.models.decoders.dmlp import DMLPDecoder
from panoda.models.decoders.dmlpv2 import DMLPv2Decoder
from panoda.models.decoders.segformer import SegFormerDecoder
from panoda.models.decoders.setr import SETRMLADecoder, SETRNaiveDecoder, SETRPUPDecoder
from panoda.models.decoders.upernet import FCNDecoder, UPerNetDecoder

DECODERS: dict[str, type[Decoder]] = {
    kind.name: kind
    for kind in (
        DMLPDecoder,
        DMLPv2Decoder,
        SegFormerDecoder,
        SETRNaiveDecoder,
        SETRPUPDecoder,
        SETRMLADecoder,
        UPerNetDecoder,
        FCNDecoder,
    )
}
WITH_AUXILIARY_HEADS = ("setr_naive", "setr_pup", "setr_mla", "upernet")


def decoder_names() -> tuple[str, ...]:
    """Names that ``create_decoder`` knows."""
    return tuple(DECODERS)


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
        name: One of ``decoder_names()``.
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
    if name not in DECODERS:
        raise ValueError(f"unknown decoder {name!r}; known: {', '.join(DECODERS)}")
    kind = DECODERS[name]
    options: dict[str, Any] = {"width": kind.default_width if width is None else width}
    if auxiliary_weights is not None:
        if name in WITH_AUXILIARY_HEADS:
            options["auxiliary_weights"] = tuple(auxiliary_weights)
        elif auxiliary_weights:
            raise ValueError(
                f"{name} has no auxiliary heads to weight with {tuple(auxiliary_weights)}; leave the weights "
                f"out, or choose one of {', '.join(WITH_AUXILIARY_HEADS)}"
            )
    return kind(channels, strides=strides, num_classes=num_classes, **options)
