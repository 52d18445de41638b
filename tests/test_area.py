"""Parts of the sphere: the same rays as whole ERP images, and labels that come back from a level horizon."""

from __future__ import annotations

import math

import pytest
import torch

from panoda.geometry.area import WHOLE, Area, over_level, tilt
from panoda.geometry.erp import erp_rays, sample_erp
from panoda.geometry.pinhole import pinhole_solid_angles

PART = Area(lon_left=-0.5, fov_x=1.2, lat_top=0.6, lat_bottom=-0.3)


def colours(rays: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W): the rays themselves as colours."""
    return rays.permute(2, 0, 1)[None]


def test_the_whole_sphere_is_an_erp_image() -> None:
    rays = WHOLE.rays(16, 32)
    assert torch.allclose(rays, erp_rays(16, 32), atol=1e-6)
    assert torch.equal(WHOLE.rays(16, 32, range(3, 7)), rays[3:7])
    image = torch.rand(2, 3, 16, 32)
    looked = erp_rays(9, 21)
    assert torch.allclose(WHOLE.sample(image, looked), sample_erp(image, looked), atol=1e-5)


def test_a_part_is_cut_where_it_lies() -> None:
    rays = PART.rays(24, 48)
    assert torch.allclose(PART.sample(colours(rays), rays), colours(rays), atol=1e-5)
    outside = torch.tensor([[[0.0, 0.0, -1.0], [math.sin(0.71), 0.0, math.cos(0.71)]]])
    assert PART.sample(colours(rays), outside, fill=9.0).eq(9).all()
    part = 1.2 * (math.sin(0.6) - math.sin(-0.3))
    assert float(48 * PART.solid_angles(24, 48).sum()) == pytest.approx(part)


@pytest.mark.parametrize("area", [WHOLE, PART, Area(lat_top=0.7, lat_bottom=-0.7)])
@pytest.mark.parametrize(("pitch", "roll"), [(0.3, -0.4), (0.0, 0.1), (-1.5, 0.0), (0.0, 0.0)])
def test_the_function_sees_a_level_horizon_and_its_values_come_back(
    area: Area, pitch: float, roll: float
) -> None:
    height, width = 64, 4 * round(16 * area.fov_x / (area.lat_top - area.lat_bottom))
    level = colours(area.rays(height, width) @ tilt(pitch, roll).T)
    asked = []

    def function(images: torch.Tensor, shown: Area) -> torch.Tensor:
        asked.append(shown)
        truth = colours(shown.rays(*images.shape[-2:]))
        seen = images.abs().sum(dim=1, keepdim=True) > 0
        inner = (
            -torch.nn.functional.max_pool2d(-seen.float(), 5, 1, 2) > 0
        )  # without what mixes with the fill
        assert ((images - truth).abs() * inner).max() < 0.02 and inner.any()
        return truth

    back = over_level(level, function, area=area, pitch=pitch, roll=roll)
    assert (back - level).abs().max() < 0.02
    assert asked[0].closed or not area.closed


def test_pixels_of_a_photograph_cover_less_at_its_corners() -> None:
    pixels = pinhole_solid_angles(100, 100, fov_x=math.pi / 2)
    assert float(pixels.sum()) == pytest.approx(4 * math.pi / 6, rel=1e-4)  # a face of a cube
    assert float(pixels[0, 0] / pixels[50, 50]) == pytest.approx(3**-1.5, rel=0.05)
    assert torch.equal(pinhole_solid_angles(100, 100, fov_x=math.pi / 2, rows=range(3, 5)), pixels[3:5])
