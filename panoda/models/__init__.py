"""Segmentation models, and reading and writing their weights."""

from panoda.models.core.errors import CheckpointError
from panoda.models.core.registry import PUBLISHED, create_model
from panoda.models.core.segmenter import Segmenter
from panoda.models.encoders.factory import encoder_names
