"""Stage rounds: further rounds of pseudo-labels, prototypes and adaptation, each from the last model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from panoda.config import MethodParams, PrototypeParams, PseudoLabelParams
from panoda.engine.seeds import stream_seed
from panoda.stages.adapt import adapt as adapt_stage
from panoda.stages.prototypes import prototypes as prototypes_stage
from panoda.stages.pseudo_labels import pseudo_labels as pseudo_labels_stage
from panoda.system.context import MetricLogger, RunContext
from panoda.system.files import staged_directory, write_json


def rounds(
    *,
    adapted: Path,
    source_train: Path,
    target_train: Path,
    out: Path,
    rounds: int,
    pseudo_labels: PseudoLabelParams,
    prototypes: PrototypeParams,
    adapt: MethodParams,
    seed: int,
    context: RunContext,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Run rounds 2..N; with ``rounds`` = 1 only an empty metrics.json is written.

    Args:
        adapted: model.safetensors of round 1.
        out: Result folder (replaced): round2/{pseudo_labels,prototypes,adapt}/, ...
        rounds: N, counting the first.

    Returns:
        The metrics of every step, prefixed by ``round2/adapt/`` and so on.
    """
    metrics: dict[str, float] = {}
    checkpoint = adapted
    labelled = {"source_train": source_train, "more_sources": more_sources, "sources": sources}
    with staged_directory(out) as folder:
        for number in range(2, rounds + 1):
            name = f"round{number}"
            here = context.state_dir / name / "done" if context.state_dir else folder / name
            labels, banks, result = here / "pseudo_labels", here / "prototypes", here / "adapt"
            common: dict[str, Any] = {"checkpoint": checkpoint, "target_train": target_train}
            state_dir = context.state_dir / name if context.state_dir else None
            logger = _LaterSteps(context.logger, (number - 2) * (adapt.iterations + 1))
            common["context"] = replace(context, state_dir=state_dir, logger=logger)
            values = {"pseudo_labels": _once(pseudo_labels_stage, out=labels, params=pseudo_labels, **common)}
            common |= labelled | {"pseudo_labels": labels}
            values["prototypes"] = _once(prototypes_stage, out=banks, params=prototypes, **common)
            common |= {"prototypes": banks, "seed": stream_seed(seed, name)}
            values["adapt"] = _once(adapt_stage, out=result, params=adapt, **common)
            metrics |= {f"{name}/{s}/{k}": v for s, found in values.items() for k, v in found.items()}
            checkpoint = result / "model.safetensors"
            if here != folder / name:
                shutil.copytree(here, folder / name, copy_function=_link)
        write_json(folder / "metrics.json", metrics)
    return metrics


def _once(stage: Callable[..., dict[str, float]], *, out: Path, **keywords: Any) -> dict[str, float]:
    """The metrics of a stage, which runs unless a killed run of these rounds has finished it in ``out``."""
    if (out / "metrics.json").is_file():
        return dict(json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    return stage(out=out, **keywords)


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class _LaterSteps(MetricLogger):
    """Logs steps after those of earlier rounds, so that no curve runs over another in the same run."""

    def __init__(self, logger: MetricLogger, offset: int) -> None:
        self._logger, self._offset = logger, offset

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log many values of one step."""
        self._logger.log_metrics(metrics, step + self._offset)

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log a picture."""
        self._logger.log_image(key, image, step + self._offset)
