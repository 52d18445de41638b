"""What images are taken for: the user, then the file, then the model, then the shape."""

from __future__ import annotations

import pytest
from PIL import ExifTags
from test_gpano import HALF, WHOLE, packet, save

from panoda.deployment.view import pixels_per_radian, view_of, width_at

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
    view = view_of(path, *size, **options)
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
