"""Models: any encoder with any decoder, and names for the published pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from panoda.labels import IGNORE_INDEX
from panoda.models.core.decoders import create_decoder, decoder_class
from panoda.models.core.neck import PyramidNeck
from panoda.models.core.quick import quicken
from panoda.models.core.segmenter import Segmenter
from panoda.models.encoders.factory import create_encoder

PUBLISHED: dict[str, tuple[str, str]] = {
    **{f"trans4pass_plus_{size}": (f"trans4pass_{size}", "dmlpv2") for size in ("t", "s")},
    **{f"segformer_b{size}": (f"mit_b{size}", "segformer") for size in range(6)},
}
"""Name -> encoder and decoder. Trans4PASS T and S are their encoders' names, with the default decoder."""
NANO = "trans4pass_nano"
NANO_WIDTH = 64
"""Width of every decoder behind the nano encoder, which is sized for training on two CPU cores."""


def create_model(
    name: str,
    *,
    num_classes: int,
    decoder: str | None = None,
    drop_path: float = 0.1,
    width: int | None = None,
    blocks: Sequence[int] | None = None,
    wrap: bool = False,
    auxiliary_weights: Sequence[float] | None = None,
) -> Segmenter:
    """Build a model with random weights; nothing is downloaded.

    Args:
        name: An encoder (``panoda.models.encoders``), or a pair of ``PUBLISHED``.
        num_classes: K, without ignore.
        decoder: A decoder (``panoda.models.decoders``); None = the published pair's, else dmlp.
        drop_path: Stochastic depth of the last encoder block, at least 0 and below 1.
        width: Channels of the decoder's features; None = as published (nano: 64).
        blocks: Encoder blocks or maps handed to the decoder, from 0; None = the usual ones.
        wrap: Plain ViTs on full panoramas: positions close around the circle.
        auxiliary_weights: Loss weights of the decoder's auxiliary heads; None = as published.

    Raises:
        ValueError: unknown names, values out of range, or an encoder and a decoder that do not fit.
    """
    chosen, pair = PUBLISHED.get(name, (name, "dmlp"))
    if name in PUBLISHED and decoder not in (None, pair):
        raise ValueError(f"{name} has the decoder {pair}, not {decoder}; name the encoder {chosen} instead")
    if not 1 <= num_classes <= IGNORE_INDEX:
        raise ValueError(
            f"num_classes is {num_classes}; expected 1 to {IGNORE_INDEX}: train ids are bytes, and "
            f"{IGNORE_INDEX} means ignore"
        )
    encoder: Any = create_encoder(chosen, drop_path=drop_path, wrap=wrap, indices=blocks)
    head = decoder or pair
    neck = None
    channels, strides = encoder.channels, encoder.strides
    if decoder_class(head).needs_pyramid and len(set(strides)) == 1 and len(strides) == 4:
        neck = PyramidNeck(channels, strides[0])
        channels, strides = neck.channels, neck.strides
    built = create_decoder(
        head,
        channels=channels,
        strides=strides,
        num_classes=num_classes,
        width=_published_width(chosen, head) if width is None else width,
        auxiliary_weights=auxiliary_weights,
    )
    model = Segmenter(encoder, built, neck=neck, name=chosen)
    quicken(model)
    model.arguments = {
        "num_classes": num_classes,
        "decoder": head,
        "drop_path": drop_path,
        "width": width,
        "blocks": None if blocks is None else list(blocks),
        "wrap": wrap,
        "auxiliary_weights": None if auxiliary_weights is None else list(auxiliary_weights),
    }
    return model


def _published_width(encoder: str, decoder: str) -> int | None:
    """Width of the decoder behind an encoder where it depends on the encoder; None = the decoder's own."""
    if encoder == NANO:
        return NANO_WIDTH
    if decoder == "segformer" and re.fullmatch(r"(mit|trans4pass|pvt_v2)_(b[2-5]|s)", encoder):
        return 768
    return None
