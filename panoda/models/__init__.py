"""Segmentation models, the discriminator, and reading and writing their weights."""

from panoda.methods.parts.discriminator import Discriminator
from panoda.models.core.registry import PUBLISHED, create_model
from panoda.models.core.segmenter import Segmenter
from panoda.models.decoders.factory import decoder_names
from panoda.models.encoders.factory import encoder_names
from panoda.models.weights.errors import CheckpointError

__all__ = [
    "PUBLISHED",
    "CheckpointError",
    "Discriminator",
    "Segmenter",
    "create_model",
    "decoder_names",
    "encoder_names",
]
