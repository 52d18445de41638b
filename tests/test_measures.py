"""Shares by pixel and solid angle, view factors: values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from panoda.deployment.measures import pixel_shares, solid_angle_shares, view_factors
from panoda.deployment.view import View
from panoda.labels import get_label_space

SPACE = get_label_space("cs13")
SKY, GREEN, ROAD = SPACE.index("sky"), SPACE.index("vegetation"), SPACE.index("road")
SPHERE = View("erp", 360.0, True, "")


def horizon(height: int, *, tree_deg: float = 0.0) -> np.ndarray:
    """Sky above, road below, and green up to a latitude."""
    label = np.full((height, 2 * height), SKY, np.uint8)
    label[: height // 2][round((90 - tree_deg) * height / 180) : height // 2] = GREEN
    label[height // 2 :] = ROAD
    return label


def test_rows_near_the_poles_are_small() -> None:
    label = np.full((180, 360), ROAD, np.uint8)
    label[:30] = SKY  # above 60 degrees: a sixth of the rows, (1 - sin 60) / 2 of the sphere
    assert pixel_shares(label, SPACE)["sky"] == pytest.approx(1 / 6)
    shares = solid_angle_shares(label, SPACE, SPHERE)
    assert shares is not None and sum(shares.values()) == pytest.approx(1)
    assert shares["sky"] == pytest.approx((1 - math.sin(math.pi / 3)) / 2, abs=1e-6)


def test_photographs_need_a_lens() -> None:
    label = np.full((100, 100), ROAD, np.uint8)
    label[:, 75:] = SKY
    assert solid_angle_shares(label, SPACE, View("pinhole", None, False, "")) is None
    shares = solid_angle_shares(label, SPACE, View("pinhole", 120.0, False, ""))
    assert shares is not None and 0.05 < shares["sky"] < 0.2


@pytest.mark.parametrize("level", [None, (0.0, 0.0)])
def test_view_factors_weigh_by_the_sine_of_the_latitude(level: tuple[float, float] | None) -> None:
    view = View("erp", 360.0, True, "", level=level)
    assert view_factors(horizon(360), SPACE, view) == {"sky": pytest.approx(1, abs=1e-4), "green": 0.0}
    # Green up to 30 degrees: sin^2 of 30 degrees is a quarter.
    factors = view_factors(horizon(360, tree_deg=30), SPACE, view)
    assert factors == {"sky": pytest.approx(0.75, abs=1e-3), "green": pytest.approx(0.25, abs=1e-3)}


def test_a_band_without_the_zenith_has_no_view_factors() -> None:
    assert (
        view_factors(horizon(100), SPACE, View("erp", 360.0, True, "", latitudes_deg=(45.0, -45.0)))["sky"]
        is None
    )
    assert view_factors(horizon(100), SPACE, View("pinhole", 90.0, False, ""))["sky"] is None


def test_a_levelled_panorama_counts_from_its_level_horizon() -> None:
    height = 180
    upside = View("erp", 360.0, True, "", level=(0.0, 180.0))
    factors = view_factors(horizon(height), SPACE, upside)
    assert factors["sky"] == pytest.approx(0, abs=1e-3)  # the road is above the camera now
