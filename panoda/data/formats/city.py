"""The embedded city as a data set: rendered by stage download, read back as raw items."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from panoda.config import CityDataset
from panoda.data.formats.dataset import RawItem
from panoda.system.errors import DataError


def download(dataset: CityDataset, out: Path, *, progress: bool) -> None:
    """Render every split into ``out``."""
    from panoda.city.dataset import write_city

    write_city(out, dataset, progress=progress)


def list_items(dataset: CityDataset, raw: Path) -> Iterator[RawItem]:
    """Items in the order of each split's meta.csv.

    Raises:
        DataError: meta.csv is missing or has another number of images than params.yaml.
    """
    return (item for split in dataset.splits for item in _split_items(dataset, raw, split))


def _split_items(dataset: CityDataset, raw: Path, split: str) -> Iterator[RawItem]:
    meta_path = raw / split / "meta.csv"
    camera, labels = dataset.camera, dataset.splits[split].labels
    erp = camera.projection == "erp"
    nan = float("nan")
    found = 0
    try:
        with meta_path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                found += 1
                yield RawItem(
                    id=row["id"],
                    split=split,
                    group=row.get("look", "city"),
                    image=raw / split / "images" / f"{row['id']}.png",
                    label=raw / split / "labels" / f"{row['id']}.png" if labels else None,
                    projection=camera.projection,
                    fov_x_deg=360.0 if erp else camera.fov_x_deg,
                    lat_top_deg=camera.lat_top_deg if erp else nan,
                    lat_bottom_deg=camera.lat_bottom_deg if erp else nan,
                )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{meta_path}: cannot be read ({error}); run stage download again") from error
    if found != dataset.splits[split].images:
        raise DataError(
            f"{meta_path}: {found} images, expected {dataset.splits[split].images}; run stage download again"
        )
