import doctest
import math

import pytest
import torch

from panoda.geometry import erp, pinhole
from panoda.geometry.area import Area
from panoda.geometry.erp import erp_rays, rays_to_erp, sample_erp
from panoda.geometry.pinhole import erp_to_pinhole, pinhole_rays, pinhole_to_erp, rays_to_pinhole

BAND = {"lat_top": math.radians(35), "lat_bottom": math.radians(-35)}


@pytest.mark.parametrize("module", [erp, pinhole])
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(module, extraglobs={"torch": torch, "math": math})
    assert result.attempted > 0 and result.failed == 0


def test_erp_rays_follow_the_convention():
    rays = erp_rays(180, 360)
    assert rays.shape == (180, 360, 3)
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(180, 360))
    # The pixel right of the middle and just above the horizon: forward, slightly right and up.
    half = math.radians(0.5)
    expected = [math.cos(half) * math.sin(half), -math.sin(half), math.cos(half) ** 2]
    torch.testing.assert_close(rays[89, 180], torch.tensor(expected))
    assert rays[0, :, 1].max() < -0.99  # the top row looks up: y points down
    assert rays[90, 270, 0] > 0.99  # lon +90 degrees is to the right


@pytest.mark.parametrize("band", [{}, BAND])
def test_rays_to_erp_inverts_erp_rays(band):
    x, y = rays_to_erp(3.0 * erp_rays(24, 48, **band), height=24, width=48, **band)
    grid_x, grid_y = erp.pixel_grid(24, 48)
    torch.testing.assert_close(x, grid_x, atol=2e-4, rtol=0)
    torch.testing.assert_close(y, grid_y, atol=2e-4, rtol=0)


def test_rays_outside_the_band_fall_outside_the_image():
    up, down = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    assert rays_to_erp(up, height=10, width=20, **BAND)[1] < 0
    assert rays_to_erp(down, height=10, width=20, **BAND)[1] > 10


def test_sampling_at_pixel_rays_is_the_identity():
    image = torch.rand(2, 3, 16, 40)
    torch.testing.assert_close(sample_erp(image, erp_rays(16, 40, **BAND), **BAND), image, atol=1e-4, rtol=0)
    label = torch.randint(0, 256, (2, 1, 16, 40), dtype=torch.uint8)
    out = sample_erp(label, erp_rays(16, 40, **BAND), **BAND, mode="nearest")
    assert out.dtype == torch.uint8 and torch.equal(out, label)


def test_sampling_wraps_around_the_seam():
    image = torch.zeros(1, 1, 8, 16)
    image[..., 0], image[..., 15] = 1.0, 3.0
    lon = math.pi - 2 * math.pi / 16 * 0.25  # a quarter pixel left of the seam
    ray = torch.tensor([math.sin(lon), 0.0, math.cos(lon)]).expand(1, 1, 3)
    # 0.25 pixels inside column 15: three quarters of it, one quarter of column 0.
    assert sample_erp(image, ray).item() == pytest.approx(0.75 * 3 + 0.25 * 1, abs=1e-4)


def test_sampling_fills_outside_the_band():
    ray = torch.tensor([0.0, -1.0, 0.2]).expand(1, 1, 3)
    assert sample_erp(torch.ones(1, 1, 8, 16), ray, **BAND, fill=255.0).item() == 255.0


def test_sampling_passes_gradients():
    image = torch.rand(1, 1, 8, 16, requires_grad=True)
    sample_erp(image, pinhole_rays(4, 4, fov_x=1.0)).sum().backward()
    assert image.grad is not None and image.grad.sum().item() == pytest.approx(16.0, abs=1e-3)


def test_solid_angles_sum_to_the_area_of_the_band():
    assert 30 * Area().solid_angles(50, 30).sum().item() == pytest.approx(4 * math.pi, rel=1e-5)
    band = Area(**BAND).solid_angles(31, 64)
    assert 64 * band.sum().item() == pytest.approx(4 * math.pi * math.sin(math.radians(35)), rel=1e-5)
    assert band[15] > band[0] > 0  # rows near the equator are larger


def test_rolled_columns_are_a_turned_camera():
    image = torch.rand(1, 3, 16, 32)
    # Rolling content right by 5 columns = looking 5 columns further left.
    turned = pinhole.view_rotation(azimuth=-5 * 2 * math.pi / 32)
    rays = erp_rays(16, 32) @ turned.T
    torch.testing.assert_close(sample_erp(image, rays), image.roll(5, dims=-1), atol=1e-3, rtol=0)


def test_pinhole_rays_field_of_view_and_turns():
    rays = pinhole_rays(1, 1001, fov_x=math.radians(90))[0]
    edge = math.degrees(math.atan2(rays[-1, 0].item(), rays[-1, 2].item()))
    assert edge == pytest.approx(45.0, abs=0.05)
    up = pinhole_rays(1, 1, fov_x=1.0, elevation=math.radians(30))[0, 0]
    torch.testing.assert_close(up, torch.tensor([0.0, -0.5, math.sqrt(0.75)]))
    # Rolled by 90 degrees the view's right side looks down.
    right = pinhole_rays(1, 3, fov_x=1.0, roll=math.pi / 2)[0, 2]
    assert right[1] > 0.2 and abs(right[0]) < 1e-6


def test_rays_to_pinhole_inverts_pinhole_rays():
    view = {"fov_x": 1.3, "azimuth": 2.0, "elevation": -0.4, "roll": 0.3}
    x, y, inside = rays_to_pinhole(pinhole_rays(20, 30, **view), height=20, width=30, **view)
    grid_x, grid_y = erp.pixel_grid(20, 30)
    assert inside.all()
    torch.testing.assert_close(x, grid_x, atol=1e-3, rtol=0)
    torch.testing.assert_close(y, grid_y, atol=1e-3, rtol=0)
    assert not rays_to_pinhole(-pinhole_rays(20, 30, **view), height=20, width=30, **view)[2].any()


def _smooth_panorama(height: int, width: int) -> torch.Tensor:
    rays = erp_rays(height, width)
    return torch.stack([(3 * rays[..., 0]).sin(), rays[..., 1], (2 * rays[..., 2]).cos()])[None]


def _whole(height: int, width: int) -> dict:
    """All rows and columns of a band."""
    rows, columns = torch.arange(height)[None] + 0.5, torch.arange(width)[None] + 0.5
    return {"height": height, "width": width, "rows": rows, "columns": columns}


def test_pinhole_and_erp_round_trip():
    panorama = _smooth_panorama(256, 512)
    view = {"fov_x": math.radians(80), "azimuth": math.radians(170), "elevation": 0.1}
    cut = erp_to_pinhole(panorama, height=120, width=160, **view)
    rays = pinhole_rays(120, 160, **view)
    exact = torch.stack([(3 * rays[..., 0]).sin(), rays[..., 1], (2 * rays[..., 2]).cos()])[None]
    torch.testing.assert_close(cut, exact, atol=2e-3, rtol=0)
    label = torch.zeros(1, 120, 160, dtype=torch.int64)
    back, band, valid = pinhole_to_erp(cut, label, **_whole(256, 512), **view)
    valid = valid[0]
    assert 0.05 < valid.float().mean() < 0.25  # 80 x 64 degrees of the sphere's pixels
    assert (back - panorama)[..., valid].abs().mean() < 2e-3
    assert (band[0, valid] == 0).all() and (band[0, ~valid] == 255).all()
    assert (back[..., ~valid] == 0).all()


def test_labels_are_never_blended():
    label = torch.zeros(1, 32, 32, dtype=torch.int64)
    label[:, :, 16:] = 18
    image = torch.zeros(1, 3, 32, 32)
    _, band, valid = pinhole_to_erp(image, label, fov_x=1.5, **_whole(64, 128), **BAND)
    valid = valid[0]
    assert band.dtype == torch.int64 and set(band.unique().tolist()) == {0, 18, 255}
    assert (band[0, :, 64:][valid[:, 64:]] == 18).all() and (band[0, :, :64][valid[:, :64]] == 0).all()


def test_a_field_of_view_must_be_one():
    with pytest.raises(ValueError, match="fov_x"):
        pinhole_rays(4, 8, fov_x=3.3)
