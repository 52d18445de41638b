"""GPano and EXIF of files written by Pillow: what the metadata says, and what cannot be used is named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from panoda.data.formats.dataset import RawItem
from panoda.data.formats.gpano import Area, contradiction, read_facts

NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
HALF = {
    "ProjectionType": "equirectangular",
    "FullPanoWidthPixels": 1024,
    "FullPanoHeightPixels": 512,
    "CroppedAreaImageWidthPixels": 512,
    "CroppedAreaImageHeightPixels": 192,
    "CroppedAreaLeftPixels": 256,
    "CroppedAreaTopPixels": 128,
}
WHOLE = HALF | {
    "CroppedAreaImageWidthPixels": 1024,
    "CroppedAreaImageHeightPixels": 512,
    "CroppedAreaLeftPixels": 0,
    "CroppedAreaTopPixels": 0,
}


def packet(values: dict[str, object], *, elements: bool = False, head: str = "") -> bytes:
    """An XMP packet with GPano as attributes or as elements."""
    pairs = values.items()
    attributes = "" if elements else " ".join(f'GPano:{k}="{v}"' for k, v in pairs)
    inside = "".join(f"<GPano:{k}>{v}</GPano:{k}>" for k, v in pairs) if elements else ""
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{head}<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:GPano="{NAMESPACE}" {attributes}>{inside}'
        '</rdf:Description></rdf:RDF></x:xmpmeta>  <?xpacket end="w"?>'
    ).encode()


def save(path: Path, height: int, width: int, *, xmp: bytes = b"", exif: dict[int, object] | None = None):
    """A picture with metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tags = Image.Exif()
    for tag, value in (exif or {}).items():
        (tags if tag == ExifTags.Base.Orientation else tags.get_ifd(ExifTags.IFD.Exif))[tag] = value
    options: dict[str, object] = {"exif": tags} if exif else {}
    if path.suffix in (".tif", ".tiff"):
        options |= {"tiffinfo": {700: xmp}} if xmp else {}
    elif path.suffix == ".png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        if xmp:
            info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options["pnginfo"] = info
    elif xmp:
        options["xmp"] = xmp
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("elements", [False, True], ids=["attributes", "elements"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_every_format_and_both_forms(tmp_path, suffix, elements):
    path = save(tmp_path / f"a{suffix}", 192, 512, xmp=packet(HALF, elements=elements))
    facts = read_facts(path)
    assert (facts.height, facts.width, facts.notes) == (192, 512, ())
    assert facts.area == Area(fov_x_deg=180.0, lat_top_deg=45.0, lat_bottom_deg=-22.5)


@pytest.mark.parametrize("compressed", [False, True])
def test_xmp_behind_the_pixels_of_a_png(tmp_path, compressed):
    path = save(tmp_path / "a.png", 192, 512)
    text = zlib.compress(packet(HALF)) if compressed else packet(HALF)
    body = b"iTXtXML:com.adobe.xmp\0" + bytes([compressed, 0]) + b"\0\0" + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert read_facts(path).area == Area(180.0, 45.0, -22.5)


@pytest.mark.parametrize(
    ("change", "size", "area", "note"),
    [
        ({}, (96, 256), Area(180.0, 45.0, -22.5), "the file has 256 x 96: resized"),
        ({}, (192, 400), None, "another shape: it was cut since"),
        ({"ProjectionType": "cylindrical"}, (192, 512), None, "ProjectionType is cylindrical"),
        ({"CroppedAreaLeftPixels": 700}, (192, 512), None, "is more than the sphere"),
        ({"FullPanoWidthPixels": "wide"}, (192, 512), None, "FullPanoWidthPixels is 'wide', not a number"),
        ({"FullPanoWidthPixels": "inf"}, (192, 512), None, "FullPanoWidthPixels is 'inf'"),
        ({"FullPanoWidthPixels": -4}, (192, 512), None, "cannot be"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, size, area, note):
    facts = read_facts(save(tmp_path / "a.jpg", *size, xmp=packet(HALF | change)))
    assert facts.area == area and note in " ".join(facts.notes)


def test_values_that_are_missing(tmp_path):
    few = {"FullPanoWidthPixels": "1024.0"}
    assert read_facts(save(tmp_path / "a.jpg", 256, 512, xmp=packet(few))).area == Area(180.0, 90.0, 0.0)
    heading = {"PoseHeadingDegrees": 12.5, "ProjectionType": "equirectangular"}
    facts = read_facts(save(tmp_path / "b.jpg", 256, 512, xmp=packet(heading)))
    assert facts.area is None and facts.notes == ()
    assert read_facts(save(tmp_path / "c.jpg", 256, 512)).area is None


def test_nothing_in_the_packet_is_expanded(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    facts = read_facts(save(tmp_path / "a.jpg", 192, 512, xmp=packet(HALF, head=bomb)))
    assert facts.area is None and facts.notes == (
        "GPano is ignored: its XMP has a document type, which is not read",
    )
    facts = read_facts(save(tmp_path / "b.jpg", 192, 512, xmp=packet(HALF)[:-60]))
    assert facts.area is None and "not well-formed" in facts.notes[0]


def test_turned_by_exif(tmp_path):
    exif = {ExifTags.Base.Orientation: 6}
    facts = read_facts(save(tmp_path / "a.jpg", 192, 512, xmp=packet(HALF), exif=exif))
    assert (facts.height, facts.width, facts.area) == (512, 192, None)
    assert "EXIF turns the image by 90 degrees" in facts.notes[0]


@pytest.mark.parametrize(
    ("exif", "size", "lens", "fov"),
    [
        ({ExifTags.Base.FocalLengthIn35mmFilm: 18}, (200, 300), True, 90.0),
        ({ExifTags.Base.FocalLengthIn35mmFilm: 28}, (100, 300), True, None),  # several photographs joined
        ({ExifTags.Base.FocalLengthIn35mmFilm: 7}, (200, 400), False, None),  # a fisheye
        ({ExifTags.Base.FocalLength: 4.2}, (200, 400), True, None),
        ({ExifTags.Base.FocalLength: 1.3}, (200, 400), False, None),  # a panoramic camera
    ],
)
def test_lens(tmp_path, exif, size, lens, fov):
    facts = read_facts(save(tmp_path / "a.jpg", *size, exif=exif))
    assert facts.lens == lens and facts.fov_x_deg == (None if fov is None else pytest.approx(fov))


def test_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert read_facts(tmp_path / "a.png") is None and read_facts(tmp_path / "b.png") is None


@pytest.mark.parametrize(
    ("size", "metadata", "declared", "said"),
    [
        ((256, 512), {}, {}, ""),
        ((100, 512), {}, {}, ""),
        ((256, 512), {"xmp": packet(WHOLE)}, {}, ""),
        (
            (192, 512),
            {"xmp": packet(HALF)},
            {"fov_x_deg": 180.0, "lat_top_deg": 45, "lat_bottom_deg": -22},
            "",
        ),
        ((256, 512), {}, {"projection": "pinhole", "fov_x_deg": 60.0}, ""),
        (
            (192, 512),
            {"xmp": packet(HALF)},
            {},
            "GPano says 180 degrees of the circle, latitudes 45 to -22.5, d",
        ),
        (
            (256, 512),
            {"xmp": packet(WHOLE)},
            {"lat_top_deg": 35.0},
            "90 to -90, declared is 360 degrees of the",
        ),
        (
            (300, 400),
            {},
            {},
            "400 x 300 pixels (width x height) are at most 240 degrees wide, declared is 360",
        ),
        (
            (256, 512),
            {"xmp": packet(WHOLE)},
            {"projection": "pinhole"},
            "latitudes 90 to -90, declared is pinhole",
        ),
    ],
)
def test_files_against_their_declaration(tmp_path, size, metadata, declared, said):
    path = save(tmp_path / "a.jpg", *size, **metadata)
    camera = {"projection": "erp", "fov_x_deg": 360.0, "lat_top_deg": 90.0, "lat_bottom_deg": -90.0}
    why = contradiction(read_facts(path), RawItem("a", "train", "", path, None, **camera | declared))
    assert said in why and bool(said) == bool(why)
