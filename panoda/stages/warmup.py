"""Stage warmup: alignment of source and target before self-training; 0 iterations pass the model through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from panoda.config import MethodParams
from panoda.data.loading.mixture import training_source
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.launch import on_devices
from panoda.engine.training import train_further
from panoda.system.context import RunContext


@on_devices
def warmup(
    *,
    checkpoint: Path,
    source_train: Path,
    target_train: Path,
    out: Path,
    params: MethodParams,
    seed: int,
    context: RunContext,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Align target outputs with source outputs before self-training, as ``train_further`` says."""
    return train_further(
        checkpoint,
        stage="warmup",
        source=training_source(source_train, more_sources, sources),
        target=PreparedSplit(target_train),
        out=out,
        params=params,
        seed=seed,
        context=context,
    )
