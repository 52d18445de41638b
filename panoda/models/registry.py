"""Models by name."""

from __future__ import annotations

from dataclasses import dataclass

from panoda.models.decoder import DMLPDecoder
from panoda.models.encoder import Encoder
from panoda.models.segmenter import Segmenter


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths of one model.

    Attributes:
        depths: Blocks in each encoder stage.
        channels: Width of each encoder stage.
        heads: Attention heads of each encoder stage.
        width: Embedding width of the decoder, the channels of the features.
    """

    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int] = (64, 128, 320, 512)
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    width: int = 128


# T and S as published (MiT-B1 and MiT-B2 encoders); nano is ours, sized for training on two CPU cores.
MODELS: dict[str, ModelSize] = {
    "trans4pass_nano": ModelSize((1, 1, 1, 1), (24, 48, 96, 160), (1, 2, 4, 5), 64),
    "trans4pass_t": ModelSize((2, 2, 2, 2)),
    "trans4pass_s": ModelSize((3, 4, 6, 3)),
}


def create_model(name: str, *, num_classes: int, drop_path: float = 0.1) -> Segmenter:
    """Build a model with random weights; nothing is downloaded.

    Args:
        name: trans4pass_nano, trans4pass_t or trans4pass_s.
        num_classes: K, without ignore.
        drop_path: Stochastic depth of the last encoder block, 0..1.

    Raises:
        ValueError: unknown name, fewer than one class, or a drop_path outside 0..1.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a model needs at least one class")
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(f"drop_path is {drop_path}; expected a probability below 1")
    size = MODELS[name]
    encoder = Encoder(size.depths, size.channels, heads=size.heads, drop_path=drop_path)
    decoder = DMLPDecoder(size.channels, num_classes=num_classes, width=size.width)
    model = Segmenter(encoder, decoder, name=name)
    model.arguments = {"num_classes": num_classes, "drop_path": drop_path}
    return model
