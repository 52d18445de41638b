"""Where stage adapt lays pinhole source images on the sphere of the target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from panoda.data.loading.transforms import JointTransform
from panoda.methods.parts.sphere_warp import warp_onto_sphere


@dataclass
class _Split:
    height: int
    width: int
    projection: str
    full_circle: bool
    fov_x_deg: float = 90.0
    lat_top_deg: float = 35.0
    lat_bottom_deg: float = -35.0


SOURCE, TARGET = _Split(64, 256, "pinhole", full_circle=False), _Split(64, 512, "erp", full_circle=True)


def _shown(seed: int, **augment) -> dict:
    """What a sample of the target shows: rows and columns, as a batch of one."""
    sample = {
        "image": torch.zeros(3, TARGET.height, TARGET.width, dtype=torch.uint8),
        "label": torch.zeros(TARGET.height, TARGET.width, dtype=torch.uint8),
        "valid": torch.ones(TARGET.height, TARGET.width, dtype=torch.bool),
        "id": "x",
        "index": 0,
    }
    transform = JointTransform(yaw_roll=True, **augment)
    shown = transform(sample, torch.Generator().manual_seed(seed), full_circle=True)
    return {name: shown[name][None] for name in ("rows", "columns")}


def _laid(onto: dict, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A source image of noise, whose labels are its rows, on what ``onto`` shows."""
    image = torch.rand(1, 3, 64, 256, generator=torch.Generator().manual_seed(9))
    label = torch.arange(64)[None, :, None].expand(1, 64, 256)
    torch.manual_seed(seed)
    return warp_onto_sphere(SOURCE, TARGET)(image, label, {}, onto)


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_the_warp_onto_a_crop_is_the_crop_of_the_warp_onto_the_whole(mirrored):
    met = 0
    for seed in range(8):
        whole, part = (
            _laid(_shown(seed, hflip=mirrored, **crop), seed=seed)
            for crop in ({}, {"crop_height": 40, "crop_width": 200})
        )
        shown = _shown(seed, hflip=mirrored, crop_height=40, crop_width=200)
        top = int(shown["rows"][0, 0])
        for of_part, of_whole in zip(part, whole, strict=True):
            assert torch.equal(of_part, of_whole[..., top : top + 40, :200])
        met += int((part[1] != 255).sum())
    assert met > 1000


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_rows_of_the_source_lie_at_their_latitudes(scale):
    """By hand: straight ahead, latitude lat shows the row 32 - f tan(lat) of a camera with f = 128 pixels."""
    turns = {"crop_height": 48, "crop_width": 512, "scale": (scale, scale), "hflip": 0.0}
    onto = _shown(3, **turns)
    torch.manual_seed(0)
    ahead = float(torch.rand(1)) * 512 * scale  # the column where the camera looks
    _, label = _laid(onto)
    column = label[0, :, round(ahead)]
    for row, found in zip(onto["rows"][0].tolist(), column.tolist(), strict=True):
        exact = 32 - 128 * math.tan(math.radians(35 - row / 64 * 70))
        assert found == 255 if not 0.01 < exact < 63.99 else abs(found + 0.5 - exact) <= 0.52
    assert (column != 255).sum() > 10


def test_padding_shows_nothing_of_the_source():
    onto = _shown(0, crop_height=64, crop_width=512, scale=(0.5, 0.5))
    _, label = _laid(onto)
    padded = onto["rows"][0].isnan()[:, None] | onto["columns"][0].isnan()[None]
    assert padded.sum() == 64 * 512 * 3 // 4
    assert (label[0][padded] == 255).all() and (label[0][~padded] != 255).any()


def test_half_precision_does_not_move_the_warp():
    warp = warp_onto_sphere(SOURCE, TARGET)
    image = torch.linspace(0, 1, 256).expand(1, 3, 64, 256)
    label = torch.arange(64)[None, :, None].expand(1, 64, 256)
    onto = {"rows": torch.arange(64)[None] + 0.5, "columns": torch.arange(512)[None] + 0.5}
    torch.manual_seed(0)
    exact = warp(image, label, {}, onto)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = warp(image, label, {}, onto)
    assert torch.equal(exact[0], mixed[0]) and torch.equal(exact[1], mixed[1])
