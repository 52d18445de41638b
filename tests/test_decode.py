"""Label decoding: tables for ids and colours, negative ids, 16 bits, and values nobody listed."""

import numpy as np
import pytest
from PIL import Image

from panoda.data.formats.dataset import Encoding
from panoda.data.formats.decode import colour_code, decode, decode_label, ignore_black
from panoda.system.errors import DataError

IDS = Encoding(kind="ids", table=((-1, 255), (0, 3), (7, 0), (300, 5)))


def write(path, pixels, **options):
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


def test_ids_in_eight_and_sixteen_bits(tmp_path):
    eight = write(tmp_path / "8.png", np.array([[0, 7, 255]], np.uint8))
    assert decode_label(eight, IDS).ids.tolist() == [[3, 0, 255]]
    sixteen = write(tmp_path / "16.png", np.array([[0, 300, 65535]], np.uint16))
    assert decode_label(sixteen, IDS).ids.tolist() == [[3, 5, 255]]
    assert decode_label(sixteen, IDS).ids.dtype == np.uint8


def test_minus_one_in_a_signed_file(tmp_path):
    signed = write(tmp_path / "s.tif", np.array([[-1, 7, 300]], np.int32))
    assert decode_label(signed, IDS).ids.tolist() == [[255, 0, 5]]


def test_an_id_of_its_own_beats_a_negative_one(tmp_path):
    path = write(tmp_path / "8.png", np.array([[255]], np.uint8))
    assert decode_label(path, Encoding(kind="ids", table=((255, 4), (-1, 255)))).ids.tolist() == [[4]]


def test_255_of_sixteen_bits_is_not_minus_one(tmp_path):
    path = write(tmp_path / "16.png", np.array([[255, 255, 0]], np.uint16))
    with pytest.raises(DataError, match=r"outside the space: 255 \(2 pixels\); expected -1..0 7 300"):
        decode_label(path, IDS)


def test_numbers_beyond_sixteen_bits_do_not_wrap(tmp_path):
    path = write(tmp_path / "i.tif", np.array([[65536 + 7, -65529, 7]], np.int32))
    assert decode(path, IDS).wrong == {"-65529": 1, "65543": 1}


def test_wrong_values_most_frequent_first_and_ignored_when_asked(tmp_path):
    path = write(tmp_path / "8.png", np.array([[9, 8, 9, 0]], np.uint8))
    with pytest.raises(
        DataError, match=r"8\.png: label ids outside the space: 9 \(2 pixels\), 8 \(1 pixels\)"
    ):
        decode_label(path, IDS)
    lenient = Encoding(kind="ids", table=IDS.table, others="ignore")
    assert decode_label(path, lenient).ids.tolist() == [[255, 255, 255, 3]]
    for encoding in (IDS, lenient):
        found = decode(path, encoding)
        assert list(found.wrong.items()) == [("9", 2), ("8", 1)] and found.ids.tolist() == [
            [255, 255, 255, 3]
        ]


def test_many_wrong_values_are_cut_short(tmp_path):
    path = write(tmp_path / "8.png", np.arange(100, 130, dtype=np.uint8)[None])
    with pytest.raises(DataError, match="and 20 more; expected"):
        decode_label(path, IDS)


def test_palette_png_counts_as_ids(tmp_path):
    image = Image.fromarray(np.array([[7, 0]], np.uint8))
    image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "p.png")
    assert decode_label(tmp_path / "p.png", IDS).ids.tolist() == [[0, 3]]


COLOURS = Encoding(
    kind="palette", table=((colour_code(128, 64, 128), 0), (colour_code(0, 0, 255), 1), (0, 255))
)


def test_colours(tmp_path):
    rgb = np.array([[[128, 64, 128], [0, 0, 255], [0, 0, 0]]], np.uint8)
    assert colour_code(128, 64, 128) == 128 * 65536 + 64 * 256 + 128
    assert decode_label(write(tmp_path / "c.png", rgb), COLOURS).ids.tolist() == [[0, 1, 255]]
    alpha = np.concatenate([rgb, np.full((1, 3, 1), 9, np.uint8)], axis=2)
    assert decode_label(write(tmp_path / "a.png", alpha), COLOURS).ids.tolist() == [[0, 1, 255]]


def test_wrong_colours_are_named(tmp_path):
    path = write(tmp_path / "c.png", np.array([[[1, 2, 3], [0, 0, 0], [1, 2, 3]]], np.uint8))
    with pytest.raises(
        DataError, match=r"colours outside the space: 1,2,3 \(2 pixels\); expected 0,0,0 0,0,255"
    ):
        decode_label(path, COLOURS)
    assert decode(path, COLOURS).wrong == {"1,2,3": 2}


def test_red_is_void_only_where_it_is_not_listed(tmp_path):
    rgb = np.array([[[13, 13, 13], [0, 1, 44], [255, 255, 255], [128, 64, 128]]], np.uint8)
    table = ((300, 6), (colour_code(128, 64, 128), 2))
    encoding = Encoding(kind="palette", table=table, red_is_void=True)
    assert decode_label(write(tmp_path / "c.png", rgb), encoding).ids.tolist() == [[255, 6, 255, 2]]


@pytest.mark.parametrize(("encoding", "pixels"), [(IDS, np.zeros((2, 2, 3))), (COLOURS, np.zeros((2, 2)))])
def test_wrong_number_of_channels(tmp_path, encoding, pixels):
    with pytest.raises(DataError, match="label.*found mode (RGB|L)"):
        decode_label(write(tmp_path / "x.png", pixels.astype(np.uint8)), encoding)


def test_results_are_the_callers_own(tmp_path):
    path = write(tmp_path / "8.png", np.array([[7]], np.uint8))
    decode_label(path, IDS).ids[:] = 9
    assert decode_label(path, IDS).ids.tolist() == [[0]]


def test_black_pixels_are_ignored():
    ids = np.array([[1, 2, 3]], np.uint8)
    ignore_black(ids, Image.fromarray(np.array([[[0, 0, 0], [0, 0, 1], [9, 9, 9]]], np.uint8)))
    assert ids.tolist() == [[255, 2, 3]]
