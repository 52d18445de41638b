"""No pretraining: stage ssl_pretrain passes, and the encoder starts as ``model.weights`` says."""

from __future__ import annotations

from panoda.config import NoneParams
from panoda.engine.method import Method, Setup
from panoda.engine.task import Task


def task(setup: Setup) -> Task:
    """There is nothing to train."""
    raise ValueError(f"stage {setup.stage}: method none trains nothing")


METHOD = Method(stage="ssl_pretrain", params=NoneParams, task=task)
