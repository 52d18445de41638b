"""Stage adapt: adaptation to the target domain by the method that the section names."""

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
def adapt(
    *,
    checkpoint: Path,
    source_train: Path | None,
    target_train: Path,
    pseudo_labels: Path,
    prototypes: Path | None,
    out: Path,
    params: MethodParams,
    seed: int,
    context: RunContext,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Adapt a model to the target domain, as ``train_further`` says; None for what a method does not read."""
    return train_further(
        checkpoint,
        stage="adapt",
        source=training_source(source_train, more_sources, sources) if source_train else None,
        target=PreparedSplit(target_train),
        out=out,
        params=params,
        seed=seed,
        context=context,
        pseudo_labels=pseudo_labels,
        prototypes=prototypes,
    )
