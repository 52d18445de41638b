"""Stage preprocess: raw files to index and shards, statistics and a contact sheet."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.config import DomainParams
from panoda.data.formats.dataset import list_items, raw_label_space
from panoda.data.prepare.prepare import CONTACT_SHEET, prepare
from panoda.data.prepare.statistics import STATISTICS
from panoda.system.context import RunContext
from panoda.system.errors import DataError

log = logging.getLogger("panoda")


def preprocess(
    *, role: str, raw: Path, out: Path, domain: DomainParams, label_space: str, context: RunContext
) -> dict[str, float]:
    """Prepare every split of one domain.

    Args:
        out: Folder of the role below ``data/prepared``; replaced as a whole: a folder per split,
            dataset.json, statistics.json, groups.csv, contact_sheet.png and, with labels, classes.csv.

    Returns:
        The content of statistics.json (see ``panoda.data.prepare.statistics.write_statistics``).

    Raises:
        DataError: missing, unreadable or wrong raw files; the message names them.
        OSError: disk full.
    """
    try:
        summary = prepare(
            list_items(domain.dataset, raw),
            out,
            height=domain.prepare.height,
            width=domain.prepare.width,
            label_space_from=raw_label_space(domain.dataset, raw),
            label_space_to=label_space,
            shard_images=domain.prepare.shard_images,
            codec=domain.prepare.codec,
            limit=domain.prepare.limit,
            state_dir=context.state_dir,
            progress=context.progress,
            fan_out=context.fan_out,
            cache=context.cache,
        )
    except DataError as error:
        raise DataError(f"{role}: {error}") from error
    for split, part in summary["splits"].items():
        for doubt in part.get("doubts", []):
            log.warning("%s %s: %s", role, split, doubt)
    metrics: dict[str, float] = json.loads((out / STATISTICS).read_text(encoding="utf-8"))
    context.logger.log_metrics(metrics, 0)
    context.logger.log_image("contact_sheet", np.asarray(Image.open(out / CONTACT_SHEET)), 0)
    return metrics
