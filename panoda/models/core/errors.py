"""Errors of reading weights."""

from __future__ import annotations

import os
from pathlib import Path


class CheckpointError(ValueError):
    """A weights file is truncated, foreign, or of another model; the message names it and the cure."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


def require_file(path: Path, missing: str) -> None:
    """Refuse a path that is no file; ``missing`` says what to do when nothing is there.

    Raises:
        MissingCheckpointError: nothing is there.
        CheckpointError: a folder, or a file that may not be read.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a file such as {path / 'model.safetensors'}")
    if not path.is_file():
        raise MissingCheckpointError(f"{path}: {missing}")
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"{path}: no permission to read it; change its permissions")
