"""The embedded city as a data set: rendered by stage download, read back as raw items."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from panoda.config import CityDataset
from panoda.data.dataset import DataError, RawItem


def download(dataset: CityDataset, out: Path, *, progress: bool) -> None:
    """Render every split into ``out``."""
    from panoda.data.city.dataset import write_city

    write_city(out, dataset, progress=progress)


def list_items(dataset: CityDataset, raw: Path) -> list[RawItem]:
    """Items in the order of each split's meta.csv.

    Raises:
        DataError: meta.csv is missing or has another number of images than params.yaml.
    """
    return [item for split in dataset.splits for item in _split_items(dataset, raw, split)]


def _split_items(dataset: CityDataset, raw: Path, split: str) -> list[RawItem]:
    meta_path = raw / split / "meta.csv"
    try:
        meta = pd.read_csv(meta_path, dtype={"id": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{meta_path}: cannot be read ({error}); run stage download again") from error
    wanted = dataset.splits[split]
    if "id" not in meta or len(meta) != wanted.images:
        raise DataError(
            f"{meta_path}: {len(meta)} images, expected {wanted.images}; run stage download again"
        )
    camera = dataset.camera
    erp = camera.projection == "erp"
    nan = float("nan")
    groups = meta["look"].astype(str) if "look" in meta else pd.Series(["city"] * len(meta))
    return [
        RawItem(
            id=name,
            split=split,
            group=group,
            image=raw / split / "images" / f"{name}.png",
            label=raw / split / "labels" / f"{name}.png" if wanted.labels else None,
            projection=camera.projection,
            fov_x_deg=360.0 if erp else camera.fov_x_deg,
            lat_top_deg=camera.lat_top_deg if erp else nan,
            lat_bottom_deg=camera.lat_bottom_deg if erp else nan,
        )
        for name, group in zip(meta["id"], groups, strict=True)
    ]
