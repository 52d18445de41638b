"""The space is said beforehand, rightly, and refused where there is too little."""

from __future__ import annotations

import errno
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_data import erp_item, pinhole_item, run_prepare, write_pair

from panoda.data.prepare.disk_space import check_space

Usage = namedtuple("Usage", "free")


def test_two_disks_are_both_looked_at(tmp_path, monkeypatch):
    (tmp_path / "state").mkdir()
    (tmp_path / "out").mkdir()
    stat = Path.stat
    other = namedtuple("Stat", "st_dev st_mode")
    monkeypatch.setattr(
        Path, "stat", lambda p, **k: other(-1, stat(p).st_mode) if p.name == "state" else stat(p, **k)
    )
    free = {"state": 2000, "out": 2000}
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(free[Path(p).name]))
    check = {"need": 1000, "waiting": tmp_path / "state", "cache": None}
    assert check_space(tmp_path / "out", **check, kept=500) == 2000
    with pytest.raises(OSError, match="disk full"):  # what waits is copied, too
        check_space(tmp_path / "out", **check, kept=1500)
    free["state"] = 900
    with pytest.raises(OSError, match=r"disk full: .*out needs about 0.0 MB in .*state, 0.0 MB are free"):
        check_space(tmp_path / "out", **check, kept=0)


@pytest.mark.parametrize("codec", ["raw", "webp"])
def test_what_is_said_is_what_it_takes(tmp_path, codec):
    items = []
    for n in range(12):
        image, label = write_pair(tmp_path, f"i{n}")
        smooth = (np.indices((64, 128)).sum(axis=0) * (n + 3)).astype(np.uint8)
        Image.fromarray(np.stack([smooth] * 3, axis=2)).save(image)
        items.append(erp_item(image, label))
    said: list[str] = []
    run_prepare(items, tmp_path / "out", shard_images=4, codec=codec, say=said.append)
    taken = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.arrow")) / 1e6
    assert len(said) == 1 and f"12 images of 64 x 128 ({codec})" in said[0]
    assert float(re.search(r"about ([\d.]+) MB", said[0])[1]) == pytest.approx(taken, abs=0.1)
    assert ("from 8 images" in said[0]) == (codec == "webp")


def test_a_compressed_set_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000))
    items = [pinhole_item(*write_pair(tmp_path, "a"))]
    with pytest.raises(OSError, match="disk full.*needs about.*MB in") as caught:
        run_prepare(items, tmp_path / "new" / "out", codec="webp")
    assert caught.value.errno == errno.ENOSPC and not (tmp_path / "new").exists()


def test_the_copy_in_dvcs_cache_is_counted_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    check = {"need": 1000, "waiting": None}
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(1900))
    assert check_space(tmp_path / "out", **check, kept=0, cache=None) == 1900
    with pytest.raises(OSError, match=r"in .*out \(DVC's copy in .*cache counts; `dvc config"):
        check_space(tmp_path / "out", **check, kept=0, cache=tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(2100))
    assert check_space(tmp_path / "out", **check, kept=0, cache=tmp_path / "cache") == 2100
    with pytest.raises(OSError, match="disk full"):  # finished shards are copied into the cache, too
        check_space(tmp_path / "out", **check, kept=500, cache=tmp_path / "cache")
