"""Pinhole source images laid onto the sphere of the target."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from panoda.data.loading.loader import Batch
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.geometry.pinhole import pinhole_to_erp
from panoda.methods.parts.mixing import place
from panoda.system.shares import rows

Warp = Callable[[Tensor, Tensor, Batch, Batch], tuple[Tensor, Tensor]]
"""Source images and labels, the batches of source and target -> images and labels of the target's size."""


def warp_onto_sphere(source: PreparedSplit | Mixture, target: PreparedSplit) -> Warp | None:
    """Source crops seen as pinhole cameras at a random azimuth of the target's sphere.

    A crop keeps the focal length (in pixels) of the whole image; the random scale of the augmentation then
    plays the part of a random field of view. Crops of sources that are no pinhole images are placed flat.
    Target samples may be any part of their panorama; the azimuth counts from their own left edge. None where
    the target is no full circle or no source has pinhole images.
    """
    parts = source.parts.values() if isinstance(source, Mixture) else [source]
    if not target.full_circle or all(p.projection != "pinhole" for p in parts):
        return None
    height, width = target.height, target.width
    lat_top, lat_bottom = math.radians(target.lat_top_deg), math.radians(target.lat_bottom_deg)

    def onto_sphere(
        image: Tensor, label: Tensor, camera: PreparedSplit, turn: Tensor, part: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        if camera.projection != "pinhole":
            return place(image, label, (part[0].shape[1], part[1].shape[1]), turn)
        half = math.tan(math.radians(camera.fov_x_deg) / 2)
        fov_x = 2 * math.atan(half * image.shape[-1] / camera.width)
        azimuth = float(turn[0] * 2 * math.pi - math.pi)
        # Autocast would turn the rays in half precision, which moves pixels by whole columns.
        with torch.autocast(image.device.type, enabled=False):
            placed, ids, _ = pinhole_to_erp(
                image,
                label,
                fov_x=fov_x,
                height=height,
                width=width,
                lat_top=lat_top,
                lat_bottom=lat_bottom,
                azimuth=azimuth,
                rows=part[0],
                columns=part[1],
            )
        return placed, ids

    def warp(image: Tensor, label: Tensor, own: Batch, onto: Batch) -> tuple[Tensor, Tensor]:
        rows_shown, columns = (onto[name].to(image.device, non_blocking=True) for name in ("rows", "columns"))
        columns = _from_the_left(columns)
        if not isinstance(source, Mixture):
            return onto_sphere(image, label, source, torch.rand(1), (rows_shown, columns))
        cameras = [source.part_of(i) for i in own["indices"].tolist()]
        turns = rows(torch.rand, len(cameras)).split(1)
        one = [
            onto_sphere(
                image[i : i + 1],
                label[i : i + 1],
                camera,
                turns[i],
                (rows_shown[i : i + 1], columns[i : i + 1]),
            )
            for i, camera in enumerate(cameras)
        ]
        return torch.cat([placed for placed, _ in one]), torch.cat([ids for _, ids in one])

    return warp


def _from_the_left(columns: Tensor) -> Tensor:
    """Columns (B, W) of samples as they would be without roll, mirror and offset; nan in padding stays.

    A source may lie at any azimuth and has its own mirroring, so only the distance between columns matters.

    Example:
        >>> _from_the_left(torch.tensor([[9.5, 8.5, 7.5], [float("nan"), 4.25, 4.75]])).tolist()
        [[0.5, 1.5, 2.5], [nan, 0.25, 0.75]]
    """
    step = columns.diff(dim=1).nanmean(dim=1, keepdim=True).abs()
    place_in_order = columns.isfinite().cumsum(dim=1) - 0.5
    return torch.where(columns.isfinite(), place_in_order * step, columns)
