"""Segmentation models, the discriminator, and reading and writing their weights."""

from panoda.models.discriminator import Discriminator
from panoda.models.errors import CheckpointError
from panoda.models.registry import MODELS, create_model
from panoda.models.segmenter import Segmenter

__all__ = ["MODELS", "CheckpointError", "Discriminator", "Segmenter", "create_model"]
