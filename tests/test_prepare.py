"""Raw files to shards: values, determinism, and every kind of bad input."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_data import erp_item, pinhole_item, read_ids, run_prepare, write_pair

from panoda.data.formats.dataset import Encoding
from panoda.data.formats.images import read_rgb
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.shards import ShardWriter
from panoda.system.errors import DataError
from panoda.system.files import sha256_file


def split_of(out: Path, name: str = "train") -> PreparedSplit:
    return PreparedSplit(out / name)


def test_same_size_is_stored_unchanged(tmp_path):
    image, label = write_pair(tmp_path, "a")
    summary = run_prepare([pinhole_item(image, label)], tmp_path / "out")
    sample = split_of(tmp_path / "out")[0]
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), np.asarray(Image.open(image)))
    np.testing.assert_array_equal(sample["label"].numpy(), np.asarray(Image.open(label)))
    assert summary["splits"]["train"]["images"] == 1
    assert summary == json.loads((tmp_path / "out" / "dataset.json").read_text())


def test_index_row(tmp_path):
    image, label = write_pair(tmp_path, "a", size=(128, 256))
    run_prepare([erp_item(image, label, crop_top=0.25, crop_bottom=0.5)], tmp_path / "out")
    row = pd.read_parquet(tmp_path / "out" / "train" / "index.parquet").iloc[0]
    assert (row.id, row.split, row.group, row.projection, row.fov_x_deg) == ("a", "train", "g", "erp", 360.0)
    assert (row.lat_top_deg, row.lat_bottom_deg) == (45.0, 0.0)
    assert (row.raw_height, row.raw_width, row.height, row.width) == (128, 256, 64, 128)
    assert (row.image_sha256, row.label_sha256) == (sha256_file(image), sha256_file(label))
    assert row.class_pixels.sum() == 64 * 128


def test_crop_and_antialiased_resize(tmp_path):
    # Columns alternate black and white: antialiasing must average them. Rows outside the crop are red.
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:, ::2] = 255
    pixels[:32] = pixels[96:] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    run_prepare(
        [erp_item(tmp_path / "a.png", None, crop_top=0.25, crop_bottom=0.25)],
        tmp_path / "out",
        label_space_from=None,
    )
    stored = split_of(tmp_path / "out")[0]["image"].numpy().astype(int)
    # Triangle filter of two source pixels a side: weights 1/8 3/8 3/8 1/8 give grey in the interior.
    assert np.abs(stored[:, :, 2:-2] - 127.5).max() <= 1


def test_labels_are_nearest_and_remapped(tmp_path):
    image, label = tmp_path / "a.png", tmp_path / "l.png"
    Image.new("RGB", (256, 128)).save(image)
    ids = np.repeat(np.arange(128, dtype=np.uint8)[:, None] // 2 % 12, 256, axis=1)  # pairs of rows
    Image.fromarray(ids).save(label)
    run_prepare(
        [pinhole_item(image, label, encoding=Encoding("ids", (*((i, i) for i in range(11)), (11, 255))))],
        tmp_path / "out",
        label_space_from="camvid11",
        label_space_to="cs13",
    )
    # camvid11 -> cs13 by hand; 10 (bicyclist) and 11 (void) are ignored.
    table = np.array([10, 2, 5, 0, 1, 8, 7, 4, 12, 9, 11, 255], np.uint8)
    table[9], table[10] = 11, 255
    split = split_of(tmp_path / "out")
    np.testing.assert_array_equal(split[0]["label"][:, 5].numpy(), table[np.arange(64) % 12])
    assert split.class_pixels[0] == 128 * len([r for r in range(64) if r % 12 == 3])
    assert split.label_space == "cs13"


@pytest.mark.parametrize("size", [(192, 384), (160, 224), (40, 80)])
def test_labels_are_taken_at_pixel_centres(tmp_path, size):
    # The label says where each pixel came from: rows in one image, columns in the other.
    rows, columns = np.indices(size) % 19
    from_row = np.floor((np.arange(64) + 0.5) * size[0] / 64).astype(int) % 19
    from_column = np.floor((np.arange(128) + 0.5) * size[1] / 128).astype(int) % 19
    for name, ids in (("rows", rows), ("columns", columns)):
        Image.new("RGB", (size[1], size[0])).save(tmp_path / f"{name}.png")
        Image.fromarray(ids.astype(np.uint8)).save(tmp_path / f"{name}_label.png")
    items = [
        pinhole_item(tmp_path / f"{name}.png", tmp_path / f"{name}_label.png") for name in ("rows", "columns")
    ]
    run_prepare(items, tmp_path / "out")
    one, two = (sample["label"].numpy() for sample in split_of(tmp_path / "out"))
    np.testing.assert_array_equal(one, np.broadcast_to(from_row[:, None], one.shape))
    np.testing.assert_array_equal(two, np.broadcast_to(from_column, two.shape))


def test_images_and_labels_stay_aligned_and_nothing_aliases(tmp_path):
    # A disc, shrunk by an odd factor: its image is half covered where its label ends.
    y, x = np.indices((448, 896)) + 0.5
    disc = np.hypot(y - 224, x - 448) < 150
    Image.fromarray(np.repeat(255 * disc[..., None], 3, axis=2).astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(disc.astype(np.uint8)).save(tmp_path / "l.png")
    # Fine stripes that a filter of too few pixels would turn into coarse ones.
    stripes = np.repeat(255 * (np.arange(896) % 5 < 2)[None, :, None], 448, axis=0).repeat(3, axis=2)
    Image.fromarray(stripes.astype(np.uint8)).save(tmp_path / "s.png")
    Image.new("L", (896, 448)).save(tmp_path / "sl.png")
    run_prepare(
        [
            pinhole_item(tmp_path / "a.png", tmp_path / "l.png"),
            pinhole_item(tmp_path / "s.png", tmp_path / "sl.png"),
        ],
        tmp_path / "out",
    )
    disc_sample, stripe_sample = split_of(tmp_path / "out")
    image, label = disc_sample["image"][0].numpy().astype(float), disc_sample["label"].numpy()
    edge = (image > 5) & (image < 250)
    assert ((image > 127.5) == (label == 1))[~edge].all()
    assert 0.9 < ((image > 127.5) == (label == 1))[edge].mean() and image[0, 0] == 0 and image[32, 64] == 255
    rows, columns = (np.nonzero(label)[axis].mean() for axis in (0, 1))
    assert rows == pytest.approx(31.5, abs=0.02) and columns == pytest.approx(63.5, abs=0.02)
    assert image.sum() / 255 == pytest.approx(np.pi * (150 / 7) ** 2, rel=0.01)
    inner = stripe_sample["image"].numpy().astype(float)[:, :, 2:-2]
    assert np.abs(inner - 0.4 * 255).max() < 12


def test_ignore_band(tmp_path):
    image, label = write_pair(tmp_path, "a")
    run_prepare([erp_item(image, label, ignore_bottom=0.25)], tmp_path / "out")
    split = split_of(tmp_path / "out")
    sample = split[0]
    assert sample["valid"][:48].all() and not sample["valid"][48:].any()
    assert (sample["label"][48:] == 255).all() and (sample["label"][:48] != 255).all()
    assert split.class_pixels.sum() == 48 * 128


def test_bytes_are_deterministic_and_digest_follows_content(tmp_path):
    items = [pinhole_item(*write_pair(tmp_path, name)) for name in "abcde"]
    first = run_prepare(items, tmp_path / "one")
    assert run_prepare(items, tmp_path / "two") == first
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert [p.name for p in files if p.suffix == ".arrow"] == [f"shard-0000{i}.arrow" for i in range(3)]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    write_pair(tmp_path, "e", seed=9)
    assert run_prepare(items, tmp_path / "two")["digest"] != first["digest"]


def test_order_is_that_of_the_items(tmp_path):
    items = [pinhole_item(*write_pair(tmp_path, name)) for name in ("z", "a", "m", "b", "y", "c", "x")]
    run_prepare(items, tmp_path / "out")
    split = split_of(tmp_path / "out")
    assert split.ids == ["z", "a", "m", "b", "y", "c", "x"]
    for sample, item in zip(split, items, strict=True):
        np.testing.assert_array_equal(sample["label"].numpy(), np.asarray(Image.open(item.label)))


def test_unlabelled_split_has_no_label_column(tmp_path):
    image, _ = write_pair(tmp_path, "a")
    run_prepare([erp_item(image, None)], tmp_path / "out", label_space_from=None)
    split = split_of(tmp_path / "out")
    assert not split.has_labels and (split[0]["label"] == 255).all() and split.class_pixels.sum() == 0
    assert (tmp_path / "out" / "train" / "shard-00000.arrow").stat().st_size < 64 * 128 * 4


# --- image modes -----------------------------------------------------------------------------------


def colours(path: Path) -> np.ndarray:
    return np.asarray(read_rgb(path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_grey(tmp_path, suffix):
    Image.new("L", (40, 30), 77).save(tmp_path / f"a.{suffix}")
    assert np.abs(colours(tmp_path / f"a.{suffix}").astype(int) - 77).max() <= 1


def test_cmyk(tmp_path):
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(colours(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 4


def test_sixteen_bit_grey(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16).repeat(3, axis=0)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png")[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_alpha_becomes_black(tmp_path):
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 255))
    image.putpixel((0, 0), (200, 100, 50, 0))
    image.save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png")[0, :2].tolist() == [[0, 0, 0], [200, 100, 50]]


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    assert colours(tmp_path / "a.png")[0, :2].tolist() == [[0, 0, 0], [10, 20, 30]]


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to show upright
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    image.save(tmp_path / "a.png", exif=exif)
    upright = colours(tmp_path / "a.png")
    assert upright.shape == (40, 20, 3) and upright[:20].min() == 255 and upright[20:].max() == 0


def test_float_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*floating-point"):
        read_rgb(tmp_path / "a.tif")


def test_palette_label_is_read_as_ids(tmp_path):
    label = Image.fromarray(np.full((4, 4), 7, np.uint8))
    label.putpalette(bytes(768))
    label.save(tmp_path / "l.png")
    assert (read_ids(tmp_path / "l.png") == 7).all()


# --- bad input -------------------------------------------------------------------------------------


def fails(tmp_path: Path, items: list, match: str, **more: object) -> str:
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "before").touch()
    with pytest.raises(DataError, match=match) as caught:
        run_prepare(items, tmp_path / "out", **more)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["before"]  # what was there stays
    assert not list(tmp_path.glob(".*"))  # and nothing is left beside it
    return str(caught.value)


def test_missing_image_and_label(tmp_path):
    image, label = write_pair(tmp_path, "a")
    items = [pinhole_item(image, tmp_path / "no.png"), pinhole_item(tmp_path / "gone.png", label)]
    message = fails(tmp_path, items, "2 problem")
    assert "no.png: no such file" in message and "gone.png: no such file" in message


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_unreadable_images_are_all_named(tmp_path, content):
    pairs = [write_pair(tmp_path, name) for name in "abc"]
    for image, _ in pairs[1:]:
        image.write_bytes(image.read_bytes()[:400] if content is None else content)
    message = fails(tmp_path, [pinhole_item(*pair) for pair in pairs], "not a readable image")
    assert "b.png" in message and "c.png" in message and "a.png" not in message


def test_unreadable_label(tmp_path):
    image, label = write_pair(tmp_path, "a")
    label.write_bytes(b"\x89PNG\r\n")
    fails(tmp_path, [pinhole_item(image, label)], r"a_label\.png: not a readable image")


def test_label_of_another_size(tmp_path):
    image, _ = write_pair(tmp_path, "a")
    _, label = write_pair(tmp_path, "b", size=(64, 120))
    fails(tmp_path, [pinhole_item(image, label)], r"b_label\.png: label of 64 x 120 .*a\.png has 64 x 128")


def test_label_ids_outside(tmp_path):
    image, label = write_pair(tmp_path, "a")
    ids = np.zeros((64, 128), np.uint8)
    ids[0, :3], ids[1, :2], ids[2, 0] = 19, 200, 255
    Image.fromarray(ids).save(label)
    message = fails(tmp_path, [pinhole_item(image, label)], "outside the space")
    assert "19 (3 pixels), 200 (2 pixels)" in message and "0..18" in message and "a_label.png" in message
    assert "255 (" not in message


def test_sixteen_bit_label_ids_outside(tmp_path):
    image, label = write_pair(tmp_path, "a")
    Image.fromarray(np.full((64, 128), 256, np.uint16)).save(label)  # 0 if it were cut to 8 bits
    fails(tmp_path, [pinhole_item(image, label)], r"outside the space: 256 \(8192 pixels\)")


def test_colour_label(tmp_path):
    image, _ = write_pair(tmp_path, "a")
    fails(tmp_path, [pinhole_item(image, image)], "single-channel class ids, found mode RGB")


def test_empty(tmp_path):
    fails(tmp_path, [], "no images")


@pytest.mark.parametrize("size", [(64, 30), (15, 128)])
def test_too_small(tmp_path, size):
    image, _ = write_pair(tmp_path, "a", size=size)
    message = fails(tmp_path, [erp_item(image, None)], "too small", label_space_from=None)
    assert f"{size[0]} x {size[1]}" in message and "at least 32 x 32" in message


def test_too_small_after_crop(tmp_path):
    image, _ = write_pair(tmp_path, "a", size=(100, 200))
    fails(tmp_path, [erp_item(image, None, crop_top=0.8)], "too small: 20 x 200", label_space_from=None)


def test_duplicate_ids(tmp_path):
    one, two = write_pair(tmp_path / "x", "a"), write_pair(tmp_path / "y", "a")
    message = fails(tmp_path, [pinhole_item(*one), pinhole_item(*two)], "already has id 'a'")
    assert "); rename one" in message
    assert str(one[0]) in message and str(two[0]) in message


def test_labels_for_some_images_only(tmp_path):
    one, two = write_pair(tmp_path, "a"), write_pair(tmp_path, "b")
    fails(tmp_path, [pinhole_item(*one), pinhole_item(two[0], None)], "labels for some images only")


def test_no_room_is_seen_before_work_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(OSError, match="disk full.*needs about") as caught:
        run_prepare([pinhole_item(*write_pair(tmp_path, "a"))], tmp_path / "new" / "out")
    assert caught.value.errno == errno.ENOSPC and not (tmp_path / "new").exists()


def test_disk_full_while_writing(tmp_path, monkeypatch):
    items = [pinhole_item(*write_pair(tmp_path, name)) for name in "abc"]
    before = run_prepare(items[:1], tmp_path / "out")
    append = ShardWriter.append

    def full(self, row):
        if self._rows == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, row)

    monkeypatch.setattr(ShardWriter, "append", full)
    with pytest.raises(OSError, match="disk full while writing .*out") as caught:
        run_prepare(items, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == before
    assert not list(tmp_path.glob(".*"))


def test_a_limit_spreads_evenly_over_the_split(tmp_path):
    image, _ = write_pair(tmp_path, "a")
    items = [
        erp_item(image, None, id=f"{split}-{i}", split=split)
        for split in ("train", "test")
        for i in range(10)
    ]
    run_prepare(items, tmp_path / "out", label_space_from=None, limit={"train": 3})
    assert split_of(tmp_path / "out").ids == ["train-0", "train-3", "train-6"]
    assert split_of(tmp_path / "out", "test").ids == [f"test-{i}" for i in range(10)]
    run_prepare(items, tmp_path / "out", label_space_from=None, limit={"train": 99})
    assert len(split_of(tmp_path / "out")) == 10
