"""Pixels of every format are those that a second decoder reads, or the file is refused by name."""

from __future__ import annotations

import re
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from raw_data import read_ids
from torchvision.io import ImageReadMode, decode_image, read_file

from panoda.data.formats.dataset import Encoding
from panoda.data.formats.decode import decode_label
from panoda.data.formats.images import read_rgb, save_jpeg
from panoda.data.formats.pixels import MAX_PIXELS, SWITCH
from panoda.system.errors import DataError

SIZE = (21, 34)
RANDOM = np.random.default_rng(5)


def values(dtype: str, *channels: int) -> np.ndarray:
    top = np.iinfo(dtype).max
    return RANDOM.integers(0, top, (*SIZE, *channels), dtype=dtype, endpoint=True)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(read_rgb(path))


def upper(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)


def png(path: Path, depth: int, kind: int, rows: list[bytes], *more: tuple[bytes, bytes], size=SIZE) -> Path:
    """A PNG written by hand: Pillow cannot write all that may lie in one."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *more, (b"IDAT", body), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def few_bits(ids: np.ndarray, depth: int) -> list[bytes]:
    bits = np.unpackbits(ids.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return [np.packbits(row).tobytes() for row in bits.reshape(len(ids), -1)]


def second(path: Path, mode: ImageReadMode = ImageReadMode.UNCHANGED) -> np.ndarray:
    """(H, W, C) by torchvision's own decoders."""
    return decode_image(read_file(str(path)), mode).permute(1, 2, 0).numpy()


# --- TIFF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff(tmp_path, order, compression, tile, dtype):
    """Separate planes of 16 bits, uncompressed, are what Pillow reads as garbage without a word."""
    layout = {"byteorder": order, "compression": compression, "predictor": bool(compression), "tile": tile}
    grey, rgb = values(dtype), values(dtype, 3)
    planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
    for name, array, options in (
        ("grey", grey, {"photometric": "minisblack"}),
        ("mixed", rgb, {"photometric": "rgb"}),
        ("planes", planes, {"photometric": "rgb", "planarconfig": "separate"}),
    ):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, array, metadata=None, **layout, **options)
        found = tifffile.imread(path)
        expected = np.moveaxis(found, 0, -1) if name == "planes" else found.reshape(*SIZE, -1)
        assert (pixels(path) == upper(np.broadcast_to(expected, (*SIZE, 3)))).all(), name


def test_tiff_alpha_is_laid_over_black_and_spare_channels_are_left_out(tmp_path):
    array = values("uint8", 4)
    array[..., 3] = RANDOM.choice([0, 255], SIZE)
    options = {"photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", array, extrasamples=["unassalpha"], **options)
    assert (pixels(tmp_path / "a.tif") == array[..., :3] * (array[..., 3:] // 255)).all()
    tifffile.imwrite(tmp_path / "x.tif", array, extrasamples=["unspecified"], **options)
    assert (pixels(tmp_path / "x.tif") == array[..., :3]).all()


def test_white_is_zero(tmp_path):
    array = values("uint8")
    tifffile.imwrite(tmp_path / "w.tif", array, photometric="miniswhite", metadata=None)
    assert (pixels(tmp_path / "w.tif")[..., 0] == 255 - tifffile.imread(tmp_path / "w.tif")).all()
    with pytest.raises(DataError, match=r"w\.tif: a TIFF in which white is zero; save it with black as zero"):
        read_ids(tmp_path / "w.tif")


def test_pages_are_refused_unless_they_are_smaller_copies(tmp_path):
    first, other = values("uint8", 3), values("uint8", 3)
    with tifffile.TiffWriter(tmp_path / "small.tif") as out:
        out.write(first, photometric="rgb", metadata=None)
        out.write(other[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    assert (pixels(tmp_path / "small.tif") == first).all()
    with tifffile.TiffWriter(tmp_path / "pages.tif") as out:
        out.write(first, photometric="rgb", metadata=None)
        out.write(other, photometric="rgb", metadata=None)
    with pytest.raises(DataError, match=r"pages\.tif: holds 2 pictures"):
        read_rgb(tmp_path / "pages.tif")


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (values("uint16", 4)[..., :3], {"photometric": "cielab"}, "not a readable image"),
        (values("uint8", 3), {"photometric": "cielab"}, "LAB colours are not read; save it as RGB"),
        (values("uint8", 3), {"photometric": "ycbcr"}, "YCbCr colours; save it as RGB"),
        (values("uint16"), {"photometric": "miniswhite"}, "white is zero"),
        (values("uint32"), {"photometric": "minisblack"}, "32-bit pixels have no defined range"),
        (values("int16"), {"photometric": "minisblack"}, "signed numbers, which have no defined range"),
        (values("int8"), {"photometric": "minisblack"}, "signed numbers, which have no defined range"),
        (values("uint8").astype("f4"), {"photometric": "minisblack"}, "floating-point pixels"),
        (values("uint8", 3).astype("f4"), {"photometric": "rgb"}, "not a readable image"),
    ],
)
def test_tiffs_that_are_refused(tmp_path, array, options, message):
    tifffile.imwrite(tmp_path / "a.tif", array, metadata=None, **options)
    with pytest.raises(DataError, match=rf"a\.tif: .*{message}"):
        read_rgb(tmp_path / "a.tif")


def test_planes_with_alpha_are_refused(tmp_path):
    planes = np.ascontiguousarray(np.moveaxis(values("uint16", 4), -1, 0))
    options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", planes, metadata=None, **options)
    with pytest.raises(DataError, match="separate planes of 16 bits other than RGB; save it interleaved"):
        read_rgb(tmp_path / "a.tif")


# --- PNG, JPEG, WebP -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_sixteen_bits(tmp_path, kind, channels):
    array = values("uint16", channels)
    if kind >= 4:
        array[..., -1] = RANDOM.choice([0, 65535], SIZE)
    path = png(tmp_path / "a.png", 16, kind, [row.astype(">u2").tobytes() for row in array])
    found = second(path)
    assert (found == array).all()
    colour = found[..., :3] if channels >= 3 else found[..., :1]
    opaque = found[..., -1:] > 0 if kind >= 4 else True
    assert (pixels(path) == upper(colour) * np.uint8(opaque)).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png_of_few_bits(tmp_path, depth):
    ids = RANDOM.integers(0, 1 << depth, SIZE)
    grey = png(tmp_path / "g.png", depth, 0, few_bits(ids, depth))
    assert (pixels(grey) == second(grey)).all() and (read_ids(grey) == ids).all()
    palette = RANDOM.integers(0, 256, (1 << depth, 3), dtype=np.uint8)
    path = png(tmp_path / "p.png", depth, 3, few_bits(ids, depth), (b"PLTE", palette.tobytes()))
    assert (pixels(path) == palette[ids]).all() and (read_ids(path) == ids).all()
    see_through = png(
        tmp_path / "t.png",
        depth,
        3,
        few_bits(ids, depth),
        (b"PLTE", palette.tobytes()),
        (b"tRNS", b"\0"),
    )
    assert (pixels(see_through) == palette[ids] * (ids > 0)[..., None]).all()


def test_a_transparent_colour_of_other_than_eight_bits_is_refused(tmp_path):
    rows = few_bits(RANDOM.integers(0, 4, SIZE), 2)
    path = png(tmp_path / "a.png", 2, 0, rows, (b"tRNS", struct.pack(">H", 1)))
    with pytest.raises(DataError, match="transparent colour .* save it with an alpha channel"):
        read_rgb(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_animations_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(values("uint8", 3)) for _ in range(2)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"holds 2 pictures \(pages, or frames of an animation\)"):
        read_rgb(tmp_path / f"a.{suffix}")


def test_a_cameras_jpeg_with_a_preview_is_its_first_picture(tmp_path):
    frames = [Image.fromarray(values("uint8", 3)) for _ in range(2)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.jpg", format="JPEG")
    assert (pixels(tmp_path / "a.jpg") == pixels(tmp_path / "b.jpg")).all()


def test_jpeg_and_webp_agree_with_another_decoder(tmp_path):
    image = Image.fromarray(values("uint8", 3)).resize((64, 48), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.jpg", quality=95)
    image.convert("L").save(tmp_path / "g.jpg", quality=95)
    image.save(tmp_path / "a.webp", lossless=True)
    for name in ("a.jpg", "g.jpg", "a.webp"):
        found = second(tmp_path / name, ImageReadMode.RGB).astype(int)
        assert np.abs(pixels(tmp_path / name) - found).max() <= 1, name


@pytest.mark.parametrize("colour", [(255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0), (0, 128, 255, 64)])
def test_cmyk_jpeg_of_adobe(tmp_path, colour):
    Image.new("CMYK", (32, 32), colour).save(tmp_path / "a.jpg", quality=100)
    c, m, y, k = colour
    expected = [(255 - ink) * (255 - k) / 255 for ink in (c, m, y)]
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - expected).max() <= 2


# --- labels --------------------------------------------------------------------------------------------

IDS = Encoding(kind="ids", table=((-1, 255), *((i, i) for i in range(200)), (40000, 201), (255, 255)))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32"])
def test_tiff_ids_are_right_or_refused(tmp_path, order, compression, dtype):
    ids = RANDOM.integers(0, 200, SIZE).astype(dtype)
    ids[0, 0] = {"uint8": 255, "uint16": 40000}.get(dtype, 7)
    path = tmp_path / "l.tif"
    tifffile.imwrite(path, ids, byteorder=order, compression=compression, photometric="minisblack")
    wanted = tifffile.imread(path).astype(int)
    wanted[wanted == 40000] = 201
    if order == ">" and (dtype == "uint32" or compression and dtype in ("int16", "int32")):
        with pytest.raises(DataError, match=r"l\.tif: (a compressed big-endian TIFF|not a readable image)"):
            decode_label(path, IDS)
    else:
        assert (decode_label(path, IDS).ids == wanted).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("l.jpg", {}), ("l.png", {"format": "JPEG"}), ("l.webp", {}), ("l.tif", {"compression": "jpeg"})],
)
def test_labels_in_lossy_compression_are_refused(tmp_path, name, options):
    Image.fromarray(values("uint8", 3)).save(tmp_path / name, **options)
    colours = Encoding(kind="palette", table=((0, 0),), others="ignore")
    for encoding in (IDS, colours):
        with pytest.raises(DataError, match=f"{re.escape(name)}: a label in lossy .* save it as PNG"):
            decode_label(tmp_path / name, encoding)


def test_colours_in_lossless_webp(tmp_path):
    colour = np.full((*SIZE, 3), (1, 2, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "l.webp", lossless=True)
    Image.fromarray(colour).save(tmp_path / "x.webp", lossless=True, exif=Image.Exif())
    encoding = Encoding(kind="palette", table=((0x010203, 4),))
    for name in ("l.webp", "x.webp"):
        assert (decode_label(tmp_path / name, encoding).ids == 4).all()


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        ("LA", "grey or palette with transparency; save it without its alpha channel"),
        ("F", "floating-point numbers; save it as a single-channel PNG of 8 or 16 bits"),
        ("CMYK", "CMYK colours; save it as a single-channel PNG of 8 or 16 bits"),
    ],
)
def test_neither_encoding_recommends_the_other_where_it_does_not_help(tmp_path, mode, advice):
    path = tmp_path / ("l.png" if mode == "LA" else "l.tif")
    Image.new(mode, (4, 4)).save(path)
    for encoding in (IDS, Encoding(kind="palette", table=((0, 0),))):
        with pytest.raises(DataError, match=f"found mode {mode}, {advice}"):
            decode_label(path, encoding)
    with Image.open(path) as image:
        helped = image.convert("L")
    helped.save(tmp_path / "helped.png")
    assert decode_label(tmp_path / "helped.png", IDS).ids.shape == (4, 4)


# --- size ----------------------------------------------------------------------------------------------


def test_pillows_own_limit_does_not_count(tmp_path, monkeypatch):
    """220 megapixels are within ours, above Pillow's; here both are tiny."""
    assert MAX_PIXELS >= 220e6
    Image.fromarray(values("uint8", 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert pixels(tmp_path / "a.png").shape == (*SIZE, 3)


@pytest.mark.parametrize("side", [30000, 100000])
def test_more_pixels_than_the_limit(tmp_path, side):
    """A tiny file that claims 10^10 pixels, and one just above the limit."""
    path = png(tmp_path / "bomb.png", 8, 2, [b""], size=(side, side))
    claimed = rf"({side} x {side}|{side * side}) pixels"
    advice = f"at most {MAX_PIXELS} pixels are read; .* environment variable {SWITCH}"
    for read in (read_rgb, read_ids):
        with pytest.raises(DataError, match=rf"bomb\.png: {claimed}.*{advice}"):
            read(path)


def test_the_switch(tmp_path, monkeypatch):
    Image.fromarray(values("uint8", 3)).save(tmp_path / "a.png")
    monkeypatch.setenv(SWITCH, "100")
    with pytest.raises(DataError, match=r"a\.png: 714 pixels, but at most 100 pixels are read"):
        read_rgb(tmp_path / "a.png")
    monkeypatch.setenv(SWITCH, str(21 * 34))
    assert pixels(tmp_path / "a.png").shape == (*SIZE, 3)
    monkeypatch.setenv(SWITCH, "1 GB")
    with pytest.raises(ValueError, match=f"{SWITCH}: '1 GB'; expected a number of pixels"):
        read_rgb(tmp_path / "a.png")


def test_second_decoder_keeps_sixteen_bits(tmp_path):
    """What the tests above rest on."""
    path = png(tmp_path / "a.png", 16, 0, [struct.pack(">H", 258)], size=(1, 1))
    assert torch.equal(decode_image(read_file(str(path))), torch.tensor([[[258]]], dtype=torch.uint16))


def test_a_jpeg_that_does_not_fit_is_an_error(tmp_path):
    image = Image.fromarray(values("uint8", 3))
    save_jpeg(image, tmp_path / "whole.jpg", quality=90)
    size = (tmp_path / "whole.jpg").stat().st_size
    assert read_rgb(tmp_path / "whole.jpg").size == image.size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Half of it can be written, as on a disk that is nearly full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            save_jpeg(image, tmp_path / "cut.jpg", quality=90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
