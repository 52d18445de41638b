"""Stage download: raw files, or a pointer to a folder that is used in place.

What a declaration says how to get is fetched first, when its folder lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from panoda.config import AnyDataset
from panoda.data.acquire.obtain import provide
from panoda.data.formats.dataset import adapter
from panoda.data.formats.gpano import contradiction, read_facts
from panoda.system.errors import DataError
from panoda.system.files import staged_directory
from panoda.system.progress import track

SHOWN = 5
"""Examples in one message."""


def download(*, role: str, dataset: AnyDataset, out: Path, progress: bool) -> dict[str, float]:
    """Fill ``out`` with the raw data of one domain.

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
            for line in _contradictions(dataset, staged, progress=progress):
                print(f"{role}: {line}")
            sizes = [path.stat().st_size for path in staged.rglob("*") if path.is_file()]
    except DataError as error:
        raise DataError(f"{role}: {error}") from error
    return {"raw_files": float(len(sizes)), "raw_megabytes": sum(sizes) / 1e6}


def _contradictions(dataset: AnyDataset, raw: Path, *, progress: bool) -> Iterator[str]:
    """Images whose metadata or shape says that they show another part of the sphere than is declared."""
    if dataset.kind not in ("folder", "declared"):
        return
    items = list(adapter(dataset.kind).list_items(dataset, raw))
    unique = {item.image: item for item in items}
    found = []
    for path, item in track(list(unique.items()), "reading metadata", enabled=progress):
        facts = read_facts(path)
        if facts is not None and (why := contradiction(facts, item)):
            found.append(f"{path}: {why}")
    if found:
        yield (
            f"{len(found)} of {len(unique)} images cannot be what the data set declares; they are used as "
            "declared. Leave them out, or make them a data set of their own (projection, fov_x_deg, "
            "lat_top_deg, lat_bottom_deg)"
        )
        yield from (f"  {line}" for line in found[:SHOWN])
        if len(found) > SHOWN:
            yield f"  and {len(found) - SHOWN} more"
