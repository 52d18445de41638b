"""Stage preprocess: raw files to index and shards."""

from __future__ import annotations

from pathlib import Path

from panoda.config import DomainParams
from panoda.data.dataset import DataError, list_items, raw_label_space
from panoda.data.prepare import prepare


def preprocess(
    *, role: str, raw: Path, out: Path, domain: DomainParams, label_space: str, progress: bool
) -> dict[str, float]:
    """Prepare every split of one domain.

    Args:
        role: source or target; for messages.
        raw: ``data/raw/<role>``.
        out: ``data/prepared/<role>``; replaced as a whole.
        domain: The domain's section of params.yaml.
        label_space: Label space of the prepared labels.
        progress: Show progress bars.

    Returns:
        Number of images per split.

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
            progress=progress,
        )
    except DataError as error:
        raise DataError(f"{role}: {error}") from error
    return {f"images/{split}": float(part["images"]) for split, part in summary["splits"].items()}
