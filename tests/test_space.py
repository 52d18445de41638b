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

from panoda.data.prepare.disk_space import Need, check_space, foresee

Usage = namedtuple("Usage", "free")


def test_raw_is_exact_and_needs_no_trial(tmp_path):
    labelled, bare = pinhole_item(tmp_path / "a", tmp_path / "b"), pinhole_item(tmp_path / "c", None)
    need = foresee(
        {"train": [labelled] * 3, "test": [bare] * 2}, height=10, width=20, codec="raw", trial=lambda _: 1 / 0
    )
    assert need == Need(3 * 800 + 2 * 600) and str(need) == "0.0 MB"


def test_compressed_is_the_mean_of_a_trial(tmp_path):
    items = [pinhole_item(tmp_path / f"{n}", None) for n in range(100)]
    tried = []

    def trial(some):
        tried.extend(int(item.image.name) for item in some)
        return [900, 1100, 900, 1100, 900, 1100, 900, 1100]

    need = foresee({"train": items}, height=100, width=100, codec="webp", trial=trial)
    assert tried == [6, 18, 31, 43, 56, 68, 81, 93]  # over the whole split
    assert (need.size, need.sampled) == (100_000, 8)
    # Deviation of the sample 106.9, two standard errors of the mean 75.6 of 1000.
    assert need.spread == pytest.approx(0.0756, abs=1e-4) and str(need) == "0.1 MB (+-8 %, from 8 images)"


def test_a_trial_without_result_counts_as_raw(tmp_path):
    need = foresee(
        {"train": [pinhole_item(tmp_path / "a", None)] * 2},
        height=10,
        width=10,
        codec="webp",
        trial=lambda _: [],
    )
    assert need == Need(600)


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
    check = {"need": Need(1000), "also": tmp_path / "state"}
    assert check_space(tmp_path / "out", **check, kept=500) == 2000
    with pytest.raises(OSError, match="disk full"):  # what waits is copied, too
        check_space(tmp_path / "out", **check, kept=1500)
    free["state"] = 900
    with pytest.raises(OSError, match=r"disk full: .*out needs about 0.0 MB in .*state, 0.0 MB are free"):
        check_space(tmp_path / "out", **check)


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
    with pytest.raises(OSError, match="disk full.*needs about.*from 1 images") as caught:
        run_prepare(items, tmp_path / "new" / "out", codec="webp")
    assert caught.value.errno == errno.ENOSPC and not (tmp_path / "new").exists()


def test_the_copy_in_dvcs_cache_is_counted_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(1900))
    assert check_space(tmp_path / "out", Need(1000)) == 1900
    with pytest.raises(OSError, match=r"in .*out \(DVC's copy in .*cache counts; `dvc config"):
        check_space(tmp_path / "out", Need(1000), cache=tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(2100))
    assert check_space(tmp_path / "out", Need(1000), cache=tmp_path / "cache") == 2100
    with pytest.raises(OSError, match="disk full"):  # finished shards are copied into the cache, too
        check_space(tmp_path / "out", Need(1000), cache=tmp_path / "cache", kept=500)
