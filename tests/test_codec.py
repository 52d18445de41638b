"""Arrays come back from their stored form exactly, or not at all."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from raw_data import erp_item, pinhole_item, run_prepare, write_pair

from panoda.data.loading.codec import check_codec, decode, encode
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.shards import ShardReader, ShardWriter
from panoda.system.errors import DataError


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    """Gradients, which compress as photographs do, with every value there is."""
    grid = np.indices(shape).sum(axis=0)
    return (grid * 255 // grid.max()).astype(np.uint8)


@pytest.mark.parametrize("shape", [(3, 37, 53), (37, 53), (3, 1, 1)])
@pytest.mark.parametrize("codec", ["raw", "webp"])
def test_exact(shape, codec):
    rng = np.random.default_rng(0)
    for array in (smooth(shape), rng.integers(0, 256, shape, dtype=np.uint8), np.full(shape, 255, np.uint8)):
        stored = encode(array, codec)
        data = memoryview(stored) if isinstance(stored, bytes) else memoryview(stored).cast("B")
        back = decode(data, shape, codec)
        np.testing.assert_array_equal(back, array)
        assert back.dtype == np.uint8 and back.flags.c_contiguous
        assert isinstance(stored, bytes) == (codec == "webp")


def test_webp_is_smaller_and_the_same_bytes_every_time():
    array = smooth((3, 128, 256))
    assert encode(array, "webp") == encode(array.copy(), "webp")
    assert len(encode(array, "webp")) < array.size / 3


def test_what_is_no_such_image():
    good = encode(smooth((3, 32, 64)), "webp")
    with pytest.raises(ValueError, match="an image of RGB 32 x 64, expected RGB 64 x 32"):
        decode(memoryview(good), (3, 64, 32), "webp")
    other = io.BytesIO()
    Image.new("RGB", (64, 32)).save(other, "PNG")
    for wrong in (good[:40], b"", other.getvalue()):
        with pytest.raises(ValueError, match="not a WebP image"):
            decode(memoryview(wrong), (3, 32, 64), "webp")


def test_sizes_beyond_the_format():
    check_codec("webp", height=16383, width=16383)
    check_codec("raw", height=20000, width=20000)
    with pytest.raises(ValueError, match="512 x 16384 pixels.*at most 16383.*prepare.codec to raw"):
        check_codec("webp", height=512, width=16384)


# --- prepared splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [True, False])
def test_both_codecs_hold_the_same_samples(tmp_path, labels):
    pairs = [write_pair(tmp_path, name) for name in "abc"]
    items = [erp_item(i, label if labels else None, ignore_bottom=0.25) for i, label in pairs]
    space = "cs19" if labels else None
    raw = run_prepare(items, tmp_path / "raw", label_space_from=space)
    small = run_prepare(items, tmp_path / "webp", label_space_from=space, codec="webp")
    one, two = PreparedSplit(tmp_path / "raw/train"), PreparedSplit(tmp_path / "webp/train")
    assert (one.codec, two.codec) == ("raw", "webp") == (raw["codec"], small["codec"])
    assert raw["digest"] != small["digest"] and one.class_pixels.tolist() == two.class_pixels.tolist()
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("image", "label", "valid")) and a["id"] == b["id"]
        b["image"].zero_()  # a copy: neither the file nor the next read changes
    assert two[2]["image"].any()
    for name in ("statistics.json", "contact_sheet.png"):
        assert (tmp_path / "raw" / name).read_bytes() == (tmp_path / "webp" / name).read_bytes()


def test_the_raw_layout_has_not_changed(tmp_path):
    # Shards and indices of before codecs existed: fixed-size cells, format 1, no word of a codec.
    run_prepare([pinhole_item(*write_pair(tmp_path, "a"))], tmp_path / "out")
    folder = tmp_path / "out/train"
    metadata = json.loads(pq.read_metadata(folder / "index.parquet").metadata[b"panoda"])
    space = {"label_space", "class_names", "palette", "raw_label_space", "remap"}
    assert set(metadata) == space | {"format", "height", "width", "has_labels", "shards"}
    assert metadata["format"] == 1
    schema = pa.ipc.open_file(folder / "shard-00000.arrow").schema
    assert schema.names == ["image", "label"]
    assert [field.type.byte_width for field in schema] == [3 * 64 * 128, 64 * 128]


def test_an_unknown_codec_is_refused(tmp_path):
    run_prepare([pinhole_item(*write_pair(tmp_path, "a"))], tmp_path / "out", codec="webp")
    index = tmp_path / "out/train/index.parquet"
    table = pq.read_table(index)
    metadata = json.loads(pq.read_metadata(index).metadata[b"panoda"]) | {"codec": "jxl"}
    pq.write_table(table.replace_schema_metadata({b"panoda": json.dumps(metadata)}), index)
    with pytest.raises(DataError, match=r"index\.parquet: format 2, codec jxl; expected .*raw or webp"):
        PreparedSplit(tmp_path / "out/train")


def test_damaged_compressed_shard(tmp_path):
    run_prepare([pinhole_item(*write_pair(tmp_path, "a"))], tmp_path / "out", codec="webp")
    shard = tmp_path / "out/train/shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[data.find(b"WEBPVP8L") + 3000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00000\.arrow: row 0 is corrupt"):
        PreparedSplit(tmp_path / "out/train")[0]


def test_bytes_that_are_no_image_but_have_the_right_checksum(tmp_path):
    columns = {"image": (3, 8, 8)}
    with ShardWriter(tmp_path, columns=columns, rows_per_shard=1, codec="webp") as writer:
        place = writer.append({"image": b"nothing"})
    reader = ShardReader(tmp_path, columns=columns, shards=writer.shards, codec="webp")
    with pytest.raises(DataError, match=r"shard-00000\.arrow: row 0 cannot be decoded \(not a WebP image"):
        reader.read(*place)
