"""Tilted samples: where every pixel goes, whole panoramas and parts of them."""

import math
from types import SimpleNamespace

import torch

from panoda.geometry.erp import erp_rays, rays_to_erp
from panoda.geometry.pinhole import view_rotation
from panoda.methods.parts.tilt import Tilt, tilt_rotation

BAND = {"lat_top": math.radians(60), "lat_bottom": math.radians(-60)}


def split(height=60, width=180):
    return SimpleNamespace(
        full_circle=True, height=height, width=width, lat_top_deg=60.0, lat_bottom_deg=-60.0, folder="target"
    )


def places(height=60, width=180):
    """Image of directions (1, 3, H, W), so that a turned image says where each pixel looks."""
    return erp_rays(height, width, **BAND).permute(2, 0, 1)[None]


def batch(rows, columns):
    return {"rows": rows[None], "columns": columns[None]}


def test_the_rotation_is_that_of_a_view_that_looks_down():
    for azimuth, angle in ((0.3, 0.2), (-2.5, 0.1), (1.0, 0.0)):
        turn = view_rotation(azimuth=azimuth)
        expected = turn @ view_rotation(elevation=-angle) @ turn.T
        found = tilt_rotation(torch.tensor([azimuth]), torch.tensor([angle]))[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def turned(image, shown, seed=0, largest=20.0):
    torch.manual_seed(seed)
    maps = torch.ones(1, 1, *image.shape[-2:], dtype=torch.int64)
    return Tilt(split(), largest)(image, maps, shown)


def rotation_of(seed, largest=20.0):
    torch.manual_seed(seed)
    drawn = torch.rand(1, 2)
    return tilt_rotation(drawn[:, 0] * 2 * math.pi, drawn[:, 1] * math.radians(largest))[0]


def test_pixels_show_what_the_tilted_camera_sees():
    whole = batch(torch.arange(60) + 0.5, torch.arange(180) + 0.5)
    image, maps = turned(places(), whole)
    expected = erp_rays(60, 180, **BAND) @ rotation_of(0).T
    seen = maps[0, 0] == 1
    # Outside are just the directions above and below the band.
    _, y = rays_to_erp(expected, height=60, width=180, **BAND)
    assert torch.equal(seen, (y >= 0) & (y <= 60))
    error = (image[0].permute(1, 2, 0) - expected).norm(dim=-1)[seen]
    assert error.max() < 0.03  # half a pixel at the borders: 1 degree


def test_a_mirrored_part_across_the_seam_is_turned_like_the_whole():
    columns = (torch.arange(120) + 100.5).flip(0)  # beyond the width: across the seam
    rows = torch.arange(10, 50) + 0.5
    part = places()[:, :, 10:50][..., columns.long() % 180]
    image, maps = turned(part, batch(rows, columns), seed=3)
    whole, _ = turned(places(), batch(torch.arange(60) + 0.5, torch.arange(180) + 0.5), seed=3)
    seen = maps[0, 0] == 1
    assert 0.5 < seen.float().mean() < 1
    expected = whole[0, :, 10:50][..., columns.long() % 180]
    inner = (image[0] - expected).norm(dim=0)[seen]
    assert inner.quantile(0.99) < 0.01 and inner.max() < 0.03


def test_padding_stays_ignored_and_no_angle_changes_nothing():
    rows = torch.cat([torch.full((4,), math.nan), torch.arange(56) + 0.5])
    image = places().clone()
    found, maps = turned(image, batch(rows, torch.arange(180) + 0.5), largest=0.0)
    assert (maps[0, 0, :4] == 255).all() and (maps[0, 0, 4:] == 1).all()
    torch.testing.assert_close(found[..., 4:, :], image[..., 4:, :], atol=1e-4, rtol=0)
