"""Stage report: one self-contained HTML page about everything the other stages wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from panoda.report.collect import collect
from panoda.report.figures import confusion_figure
from panoda.report.html import render
from panoda.system.context import RunContext
from panoda.system.files import staged_directory


def report(
    *,
    outputs: Path,
    params: Mapping[str, Any],
    provenance: Mapping[str, Any],
    out: Path,
    context: RunContext | None = None,
) -> dict[str, float]:
    """Write ``out/index.html``; confusion matrices also go to the logger, as figures.

    Args:
        outputs: Folder with evaluate/ and, where they ran, pretrain/, warmup/, pseudo_labels/, prototypes/,
            adapt/ and rounds/.
        provenance: Where the run comes from: ``git_commit``, ``git_dirty`` and anything else worth showing.

    Returns:
        ``bytes``, the size of the page.

    Raises:
        ValueError: the evaluation is missing or unreadable.
    """
    page = render(collect(outputs), params=params, provenance=provenance).encode()
    with staged_directory(out) as folder:
        (folder / "index.html").write_bytes(page)
    logger = (context or RunContext()).logger
    for table in sorted((outputs / "evaluate").glob("confusion_*.csv")):
        title = table.stem.removeprefix("confusion_").replace("_", " ")
        frame = pd.read_csv(table, index_col="label")
        logger.log_figure(f"{table.stem}.png", confusion_figure(frame, title=title))
    return {"bytes": float(len(page))}
