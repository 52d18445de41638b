"""Reading prepared splits and pseudo-labels back, and what happens when their files are damaged."""

from __future__ import annotations

import errno
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from raw_data import erp_item, pinhole_item, prepared_folder, run_prepare, write_pair

from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.pseudo import PseudoLabelSplit, PseudoLabelWriter
from panoda.data.loading.shards import ShardWriter
from panoda.system.errors import DataError


def test_attributes(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path, 3, erp=True))
    assert len(split) == 3 and split.ids == ["i0", "i1", "i2"] and (split.height, split.width) == (64, 128)
    assert split.projection == "erp" and split.full_circle and split.has_labels
    assert (split.fov_x_deg, split.lat_top_deg, split.lat_bottom_deg) == (360.0, 90.0, -90.0)
    assert split.label_space == "cs19" and split.num_classes == 19
    counts = sum(np.bincount(s["label"].numpy().ravel(), minlength=19) for s in split)
    np.testing.assert_array_equal(split.class_pixels, counts)
    assert split.class_pixels.dtype == np.int64 and len(split.digest) == 64


def test_pinhole_is_no_full_circle(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path, 1))
    assert not split.full_circle and np.isnan(split.lat_top_deg) and split.fov_x_deg == 90.0


def test_samples(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path))
    sample = split[-1]
    assert sample["id"] == "i4" and sample["index"] == 4
    assert sample["image"].shape == (3, 64, 128) and sample["image"].dtype == torch.uint8
    assert sample["label"].shape == (64, 128) and sample["label"].dtype == torch.uint8
    assert sample["valid"].dtype == torch.bool and sample["valid"].all()
    sample["image"].zero_()  # a copy: neither the file nor the next read changes
    assert split[4]["image"].any()
    for wrong in (5, -6):
        with pytest.raises(IndexError, match="there are 5"):
            split[wrong]


def test_pickled_copy_reads_the_same(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path))
    first = split[3]["image"]
    copy = pickle.loads(pickle.dumps(split))
    assert torch.equal(copy[3]["image"], first)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.index\.parquet: no such file; run the stage"):
        PreparedSplit(tmp_path / "nowhere")


def test_broken_index(tmp_path):
    folder = prepared_folder(tmp_path)
    index = folder / "index.parquet"
    data = index.read_bytes()
    index.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"index\.parquet: not a readable index"):
        PreparedSplit(folder)
    pq.write_table(pa.table({"id": ["a"]}), index)
    with pytest.raises(DataError, match="format None, codec raw; expected format 1"):
        PreparedSplit(folder)


def test_truncated_shard(tmp_path):
    folder = prepared_folder(tmp_path)
    shard = folder / "shard-00001.arrow"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000])
    with pytest.raises(DataError, match=rf"shard-00001\.arrow: it has {len(data) - 1000} bytes, expected"):
        PreparedSplit(folder)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.arrow: it is missing"):
        PreparedSplit(folder)


def test_one_flipped_bit(tmp_path):
    folder = prepared_folder(tmp_path)
    shard = folder / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    pixels = PreparedSplit(folder)[1]["image"].numpy().tobytes()
    data[data.find(pixels) + 1234] ^= 1
    shard.write_bytes(data)
    split = PreparedSplit(folder)
    split[0]
    with pytest.raises(DataError, match=r"shard-00000\.arrow: row 1 is corrupt"):
        split[1]


@pytest.mark.parametrize("where", ["start", "end"])
def test_overwritten_shard(tmp_path, where):
    folder = prepared_folder(tmp_path)
    shard = folder / "shard-00000.arrow"
    data = shard.read_bytes()
    middle = len(data) // 3
    shard.write_bytes(bytes(middle) + data[middle:] if where == "start" else data[:-middle] + bytes(middle))
    split = PreparedSplit(folder)
    with pytest.raises(DataError, match=r"shard-00000\.arrow"):
        [split[i] for i in range(2)]


def test_writer_refuses_wrong_rows(tmp_path):
    with ShardWriter(tmp_path, columns={"label": (2, 3)}, rows_per_shard=1) as writer:
        for row in ({"label": np.zeros((3, 2), np.uint8)}, {"label": np.zeros((2, 3))}):
            with pytest.raises(ValueError, match=r"column 'label': expected uint8 \(2, 3\)"):
                writer.append(row)


# --- pseudo-labels ---------------------------------------------------------------------------------


def pseudo(tmp_path, split):
    folder = tmp_path / "pseudo"
    folder.mkdir(exist_ok=True)
    with PseudoLabelWriter(folder, split, shard_images=2) as writer:
        for i in range(len(split)):
            label = torch.full((64, 128), i, dtype=torch.uint8)
            label[i:] = 255
            writer.add(split.ids[i], label, np.full((64, 128), 10 * i, np.uint8))
    return folder


def test_pseudo_labels_replace_labels(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path, erp=True))
    labelled = PseudoLabelSplit(split, pseudo(tmp_path, split))
    assert len(labelled) == 5 and labelled.full_circle and labelled.has_labels
    for i in range(5):
        sample = labelled[i]
        assert sample["id"] == split.ids[i] and torch.equal(sample["image"], split[i]["image"])
        assert (sample["label"][:i] == i).all() and (sample["label"][i:] == 255).all()
        assert set(sample) == set(split[i])
    assert labelled.class_pixels.tolist() == [0, 128, 256, 384, 512] + [0] * 14
    assert labelled.digest != split.digest


def test_pseudo_labels_of_other_images(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path))
    folder = pseudo(tmp_path, split)
    other = PreparedSplit(prepared_folder(tmp_path / "other", 4))
    with pytest.raises(DataError, match="made for other images.*run stage pseudo_labels again"):
        PseudoLabelSplit(other, folder)


def test_pseudo_writer_refuses(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path, 2))
    (tmp_path / "p").mkdir()
    good = np.zeros((64, 128), np.uint8)
    with pytest.raises(ValueError, match="1 images have no pseudo-label, such as 'i1'"):
        with PseudoLabelWriter(tmp_path / "p", split) as writer:
            writer.add("i0", good, good)
            with pytest.raises(ValueError, match="the next image is 'i1', not 'i0'"):
                writer.add("i0", good, good)
            with pytest.raises(ValueError, match="expected uint8"):
                writer.add("i1", np.zeros((64, 127), np.uint8), good)
            with pytest.raises(ValueError, match="expected uint8"):
                writer.add("i1", good, np.zeros((64, 128), np.float32))
    assert not (tmp_path / "p" / "index.parquet").exists()


def test_pseudo_writer_leaves_no_index_after_an_error(tmp_path, monkeypatch):
    split = PreparedSplit(prepared_folder(tmp_path, 1))
    (tmp_path / "p").mkdir()

    def full(self, row):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "append", full)
    with pytest.raises(OSError, match="disk full while writing"):
        with PseudoLabelWriter(tmp_path / "p", split) as writer:
            writer.add("i0", np.zeros((64, 128), np.uint8), np.zeros((64, 128), np.uint8))
    assert not (tmp_path / "p" / "index.parquet").exists()


def test_truncated_pseudo_shard(tmp_path):
    split = PreparedSplit(prepared_folder(tmp_path))
    folder = pseudo(tmp_path, split)
    shard = folder / "shard-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"pseudo.shard-00002\.arrow: it has"):
        PseudoLabelSplit(split, folder)


def test_ignore_band_survives(tmp_path):
    pairs = [write_pair(tmp_path / "raw", n) for n in "ab"]
    items = [erp_item(*pairs[0], ignore_bottom=0.5), erp_item(*pairs[1])]
    run_prepare(items, tmp_path / "out")
    split = PreparedSplit(tmp_path / "out" / "train")
    assert [int(s["valid"].sum()) for s in split] == [32 * 128, 64 * 128]


def test_mixed_field_of_view_gives_the_median(tmp_path):
    pairs = [write_pair(tmp_path / "raw", n) for n in "abc"]
    items = [pinhole_item(*p, fov_x_deg=f) for p, f in zip(pairs, (50.0, 60.0, 100.0), strict=True)]
    run_prepare(items, tmp_path / "out")
    assert PreparedSplit(tmp_path / "out" / "train").fov_x_deg == 60.0
