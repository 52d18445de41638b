"""Errors of reading weights."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A weights file is truncated, foreign, or of another model; the message names it and the cure."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""
