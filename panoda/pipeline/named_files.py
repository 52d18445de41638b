"""The files that params.yaml names (label spaces, declarations, a tokenizer): their content is part of a result.

They count for a run by hand as its inputs do; for `dvc repro`, ``panoda.pipeline.watch`` keeps their digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panoda.config import Params
from panoda.data.formats.declared import files_of
from panoda.labels import is_space_file

DATASET_STAGES = ("download", "preprocess")
"""Stages that read the files of their data set's section; preprocess reads the label space, too."""


def label_space_files(label_space: str) -> dict[str, Path]:
    """The file of the run's label space, if it has one."""
    return {"label_space": Path(label_space)} if is_space_file(label_space) else {}


def tokenizer_file(ssl: Mapping[str, Any]) -> dict[str, Path]:
    """The file of BEiT's tokenizer, where section ssl loads one."""
    weights = (ssl.get("tokenizer") or {}).get("weights")
    return {"tokenizer": Path(weights)} if weights else {}


def named_files(stage: str, role: str | None, params: Params) -> dict[str, Path]:
    """Files besides its inputs that decide a stage's result: what they are -> path.

    Raises:
        ValueError: a declaration that is missing or wrong.
    """
    if stage == "ssl_pretrain":
        return tokenizer_file(params.ssl.model_dump())
    if role is None or stage not in DATASET_STAGES:
        return {}
    found = files_of(params.data.domains[role].dataset)
    return found | label_space_files(params.label_space) if stage == "preprocess" else found
