"""Stage download: raw files, or a pointer to a folder that is used in place.

What a declaration says how to get is fetched first, when its folder lacks it.
"""

from __future__ import annotations

from pathlib import Path

from panoda.config import AnyDataset
from panoda.data.dataset import DataError, adapter
from panoda.data.obtain import provide
from panoda.files import staged_directory


def download(*, role: str, dataset: AnyDataset, out: Path, progress: bool) -> dict[str, float]:
    """Fill ``out`` with the raw data of one domain.

    Args:
        role: source or target; for messages.
        dataset: The data set's section of params.yaml.
        out: ``data/raw/<role>``; replaced as a whole.
        progress: Show progress bars.

    Returns:
        Number of raw files and their megabytes (10^6 bytes).

    Raises:
        DataError: the data set's folder is missing or not laid out as expected, or its files cannot be
            fetched.
        OSError: disk full.
    """
    try:
        provide(dataset, progress=progress)
        with staged_directory(out) as staged:
            adapter(dataset.kind).download(dataset, staged, progress=progress)
            sizes = [path.stat().st_size for path in staged.rglob("*") if path.is_file()]
    except DataError as error:
        raise DataError(f"{role}: {error}") from error
    return {"raw_files": float(len(sizes)), "raw_megabytes": sum(sizes) / 1e6}
