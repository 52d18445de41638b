"""The space is said beforehand, rightly, and refused where there is too little."""

from __future__ import annotations

import errno
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image
from raw_data import erp_item, pinhole_item, run_prepare, write_pair

from panoda.data.prepare.prepare import check_space

Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize("codec", ["raw", "webp"])
def test_what_is_said_is_what_it_takes(tmp_path, codec, monkeypatch):
    items = []
    for n in range(12):
        image, label = write_pair(tmp_path, f"i{n}")
        smooth = (np.indices((64, 128)).sum(axis=0) * (n + 3)).astype(np.uint8)
        Image.fromarray(np.stack([smooth] * 3, axis=2)).save(image)
        items.append(erp_item(image, label))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="needs about") as caught:
        patch.setattr(shutil, "disk_usage", lambda _: Usage(1000))
        run_prepare(items, tmp_path / "out", shard_images=4, codec=codec)
    run_prepare(items, tmp_path / "out", shard_images=4, codec=codec)
    taken = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.arrow")) / 1e6
    about = float(re.search(r"about ([\d.]+) MB", str(caught.value))[1])
    assert about == pytest.approx(taken if codec == "raw" else 0.5 * 12 * 64 * 128 * 4 / 1e6, abs=0.1)


def test_a_compressed_set_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000))
    items = [pinhole_item(*write_pair(tmp_path, "a"))]
    with pytest.raises(OSError, match="disk full.*needs about.*MB in") as caught:
        run_prepare(items, tmp_path / "new" / "out", codec="webp")
    assert caught.value.errno == errno.ENOSPC and not (tmp_path / "new").exists()


def test_the_copy_in_dvcs_cache_is_counted_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(1900))
    check_space(tmp_path / "out", 1000, kept=0, cache=None)
    with pytest.raises(OSError, match=r"in .*out \(DVC's copy in .*cache counts; `dvc config"):
        check_space(tmp_path / "out", 1000, kept=0, cache=tmp_path / "cache")
    check_space(tmp_path / "out", 1000, kept=500, cache=tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(2100))
    check_space(tmp_path / "out", 1000, kept=0, cache=tmp_path / "cache")
