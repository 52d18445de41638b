"""What images are taken for: the user, then the file, then the model, then the shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags
from test_gpano import HALF, WHOLE, packet, save

from panoda.deployment.view import Geometry, ends_meet, pixels_per_radian, view_of, width_at

LENS = {ExifTags.Base.FocalLengthIn35mmFilm: 18}
TARGET = {"height": 96, "width": 512, "full_circle": True, "projection": "erp", "fov_x_deg": 360.0}
PHOTOS = {"height": 512, "width": 1024, "full_circle": False, "projection": "pinhole", "fov_x_deg": 50.0}
PARTS = {"height": 96, "width": 256, "full_circle": False, "projection": "erp", "fov_x_deg": 180.0}
OLD = {"height": 96, "width": 512, "full_circle": True}


@pytest.mark.parametrize(
    ("size", "metadata", "options", "said", "wrap"),
    [
        ((192, 512), {"xmp": packet(HALF)}, {}, "half circle of 180 degrees (GPano)", False),
        ((256, 512), {"xmp": packet(WHOLE)}, {"trained": PHOTOS}, "full circle (GPano; ", True),
        ((256, 512), {}, {}, "full circle (2:1, no metadata)", True),
        ((256, 512), {}, {"trained": OLD}, "full circle (2:1, no metadata)", True),
        ((100, 512), {}, {"trained": TARGET}, "full circle (5.12:1, no metadata)", True),
        ((100, 190), {}, {"trained": TARGET}, "full circle (1.90:1, no metadata)", True),
        ((100, 189), {}, {"trained": TARGET}, "pinhole photograph (1.89:1, no metadata)", False),
        ((256, 512), {"exif": LENS}, {"trained": TARGET}, "photograph of 94 degrees (EXIF focal", False),
        ((256, 512), {}, {"trained": PHOTOS}, "(2:1, no metadata; the model saw pinhole images in", False),
        ((96, 256), {}, {"trained": PARTS}, "half circle of 180 degrees (2.67:1, no metadata; as", False),
        ((256, 512), {}, {"projection": "pinhole"}, "pinhole photograph (--projection pinhole)", False),
        ((256, 512), {"xmp": packet(HALF)}, {"projection": "pinhole"}, "photograph (--projection", False),
        ((256, 512), {"exif": LENS}, {"projection": "erp"}, "full circle (--projection erp)", True),
        ((256, 256), {}, {"projection": "erp"}, "half circle of 180 degrees (--projection erp)", False),
        ((192, 512), {"xmp": packet(HALF)}, {"wrap": True}, "full circle (--wrap)", True),
        ((256, 512), {"xmp": packet(WHOLE)}, {"wrap": False}, "full circle (GPano, --no-wrap", False),
        ((256, 512), {}, {"wrap": False}, "pinhole photograph (2:1, no metadata, --no-wrap)", False),
        ((60, 80), {}, {"wrap": True}, "full circle (--wrap)", True),
        (
            (192, 400),
            {"xmp": packet(HALF)},
            {},
            "full circle (2.08:1); GPano is ignored: it is of 512 x 192 pixels, the file has",
            True,
        ),
    ],
)
def test_what_is_assumed_and_said(tmp_path, size, metadata, options, said, wrap):
    path = save(tmp_path / "a.jpg", *size, **metadata)
    trained = options.pop("trained", None)
    view = view_of(path, *size, geometry=Geometry(**options), trained=trained)
    assert said.replace("(GPano; ", "(GPano)") in str(view) and view.wrap == wrap


def test_a_few_pixels_cut_off_still_close_and_a_degree_does_not(tmp_path):
    for cut, wrap in ((1, True), (4, False)):
        area = WHOLE | {"CroppedAreaImageWidthPixels": 1024 - cut}
        path = save(tmp_path / f"{cut}.jpg", 512, 1024 - cut, xmp=packet(area))
        assert view_of(path, 512, 1024 - cut).wrap == wrap


def test_pixels_per_radian_whatever_part_is_shown(tmp_path):
    half = view_of(save(tmp_path / "a.jpg", 192, 512, xmp=packet(HALF)), 192, 512)
    photo = view_of(save(tmp_path / "b.jpg", 200, 300, exif=LENS), 200, 300)  # 90 degrees
    for trained in (TARGET, OLD):
        resolution = pixels_per_radian(trained)
        assert resolution == pytest.approx(512 / 6.283185307)
        assert width_at(half, resolution) == pytest.approx(256)
        assert width_at(photo, resolution) == pytest.approx(2 * resolution)
    assert pixels_per_radian(PARTS) == pytest.approx(256 / 3.141592654)
    assert pixels_per_radian(PHOTOS) is None and pixels_per_radian({}) is None


def test_a_photograph_of_two_to_one_is_no_circle_unless_told_so():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    photo = np.concatenate((ramp, ramp // 2 + 128), axis=1)
    circle = np.concatenate((ramp, ramp[:, ::-1]), axis=1)
    for factor in (1, 40):  # a large image is smooth from column to column
        assert not ends_meet(photo.repeat(factor, 1)) and ends_meet(circle.repeat(factor, 1))
    for trained in ({}, TARGET):
        found = view_of(None, 64, 128, trained=trained, pixels=photo)
        assert str(found) == "pinhole photograph (2:1, no metadata, its ends do not meet)" and found.guessed
    assert view_of(None, 64, 128, trained=PHOTOS, pixels=circle).wrap
    assert view_of(None, 64, 128, trained=PARTS, pixels=photo).fov_x_deg == 180
    for told in (Geometry("erp"), Geometry("band"), Geometry(wrap=True), Geometry(fov_deg=360)):
        assert view_of(None, 64, 128, geometry=told, pixels=photo).wrap


@pytest.mark.parametrize(
    ("said", "fov", "lat", "wrap"),
    [
        (Geometry("band"), 360, (32, -32), True),
        (Geometry("band", lat_deg=(50, -20)), 360, (50, -20), True),
        (Geometry(lat_deg=(50, -20)), 360, (50, -20), True),
        (Geometry("erp", fov_deg=200), 200, (17.8, -17.8), False),
        (Geometry("erp", fov_deg=200, lat_deg=(40, -40)), 200, (40, -40), False),
        (Geometry(fov_deg=60), 60, None, False),
    ],
)
def test_angles_that_are_told(said, fov, lat, wrap):
    view = view_of(None, 90, 506, geometry=said)
    assert (view.fov_x_deg, view.wrap) == (fov, wrap) and (view.projection == "pinhole") == (lat is None)
    if lat is not None:
        assert np.degrees(view.band(90, 506)) == pytest.approx(lat, abs=0.3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fov_deg": 0}, "more than 0, and 360 at most"),
        ({"fov_deg": 400}, "360 at most"),
        ({"fov_deg": float("nan")}, "360 at most"),
        ({"projection": "pinhole", "fov_deg": 175}, "expected 170 at most"),
        ({"projection": "pinhole", "wrap": True}, "pinhole images are no circles"),
        ({"projection": "pinhole", "lat_deg": (9, -9)}, "leave out --lat"),
        ({"fov_deg": 90, "wrap": True}, "90 degrees are no full circle"),
        ({"lat_deg": (-10, 10)}, "expected the upper edge"),
        ({"lat_deg": (95, 0)}, "from 90 to -90"),
        ({"upright": True, "pitch_deg": 91}, "expected -90 to 90"),
        ({"upright": True, "roll_deg": 200}, "expected -180 to 180"),
        ({"roll_deg": 2}, "add --upright"),
    ],
)
def test_angles_that_cannot_be(wrong, said):
    with pytest.raises(ValueError, match=said):
        Geometry(**wrong)


def test_pose_and_place_of_a_cut_panorama(tmp_path):
    posed = HALF | {
        "PoseHeadingDegrees": 271,
        "PosePitchDegrees": -4,
        "PoseRollDegrees": 1.5,
        "CroppedAreaLeftPixels": 0,
    }
    path = save(tmp_path / "a.jpg", 192, 512, xmp=packet(posed))
    view = view_of(path, 192, 512, geometry=Geometry(upright=True))
    assert view.level == (-4, 1.5) and view.pose.heading_deg == 271 and view.centre_lon_deg == -90
    assert "levelled by pitch -4 and roll 1.5 (GPano)" in str(view)
    assert np.degrees(view.area(192, 512).lon_left) == pytest.approx(-180)
    given = view_of(path, 192, 512, geometry=Geometry(upright=True, roll_deg=9))
    assert given.level == (0, 9) and view_of(path, 192, 512).level is None
    bare = view_of(None, 256, 512, geometry=Geometry(upright=True))
    assert bare.level is None and "not levelled: no pitch or roll" in str(bare)
    wild = save(tmp_path / "b.jpg", 192, 512, xmp=packet(HALF | {"PosePitchDegrees": 120}))
    assert "GPano is ignored: PosePitchDegrees is 120, more than 90" in str(view_of(wild, 192, 512))
