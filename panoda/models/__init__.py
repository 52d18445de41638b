"""Segmentation models, the discriminator, and reading and writing their weights."""

from panoda.models.decoders import decoder_names
from panoda.models.discriminator import Discriminator
from panoda.models.encoders import encoder_names
from panoda.models.errors import CheckpointError
from panoda.models.registry import PUBLISHED, create_model
from panoda.models.segmenter import Segmenter

__all__ = [
    "PUBLISHED",
    "CheckpointError",
    "Discriminator",
    "Segmenter",
    "create_model",
    "decoder_names",
    "encoder_names",
]
