"""A killed preparation goes on with the shards it had finished, and ends with the same bytes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_data import erp_item, run_prepare, write_pair

from panoda.data.prepare import pieces as prepare_items
from panoda.system.errors import DataError
from panoda.system.files import sha256_file

HERE = Path(__file__).parent
IMAGES, SHARD = 24, 2
# The same items in every process: this file makes them, and prepares them when it is run.
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from raw_data import run_prepare
from test_finished import items_in
raw, out, state, codec = map(Path, sys.argv[2:])
run_prepare(items_in(raw), out, codec=str(codec), state_dir=state)
"""


def items_in(raw: Path) -> list:
    names = sorted(path for path in raw.glob("*.png") if not path.stem.endswith("_label"))
    return [
        erp_item(path, path.with_name(f"{path.stem}_label.png"), split="val" if n % 4 == 3 else "train")
        for n, path in enumerate(names)
    ]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for n in range(IMAGES):
        write_pair(folder, f"i{n:02d}", size=(128, 256), seed=n)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def finished(state: Path) -> list[Path]:
    """Finished shards; those on their way lie in hidden folders."""
    found = state.glob("pieces/preparing */*/shard-*.arrow")
    return sorted(path for path in found if not path.parent.name.startswith("."))


@pytest.mark.parametrize("codec", ["raw", "webp"])
def test_killed_at_a_random_moment_it_ends_with_the_same_bytes(raw, tmp_path, codec):
    run_prepare(items_in(raw), tmp_path / "whole", codec=codec)
    here = tmp_path / "killed"
    out, state = here / "out", here / "state"
    command = [sys.executable, "-c", SCRIPT, *map(str, (HERE, raw, out, state)), codec]
    chance = random.Random(time.time_ns())
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    least = chance.randint(1, 8)
    while len(finished(state)) < least and process.poll() is None:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.03))
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not out.exists()
    before = {path.stat().st_ino for path in finished(state)}
    assert least <= len(before) <= IMAGES // SHARD
    run_prepare(items_in(raw), out, codec=codec, state_dir=state)
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(p.name for p in here.iterdir()) == ["out", "state"]
    assert before <= {path.stat().st_ino for path in out.rglob("*.arrow")}  # taken over, not made again


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_workers_changes_nothing(raw, tmp_path, workers):
    for codec in ("raw", "webp"):
        run_prepare(items_in(raw)[:9], tmp_path / codec, codec=codec, workers=workers)
        run_prepare(items_in(raw)[:9], tmp_path / f"{codec}-all", codec=codec)
        assert contents(tmp_path / codec) == contents(tmp_path / f"{codec}-all")


def made(monkeypatch) -> list[str]:
    """Ids of the images that are prepared from now on."""
    ids: list[str] = []
    original = prepare_items.prepare_item

    def noting(item, spec):
        ids.append(item.id)
        return original(item, spec)

    monkeypatch.setattr(prepare_items, "prepare_item", noting)
    return ids


def test_only_what_is_missing_or_changed_is_made(raw, tmp_path, monkeypatch):
    copied = tmp_path / "raw"
    shutil.copytree(raw, copied)
    items = [item for item in items_in(copied) if item.split == "train"][:6]
    state, out = tmp_path / "state", tmp_path / "out"
    run_prepare(items, out, state_dir=state)
    ids = made(monkeypatch)
    run_prepare(items, out, state_dir=state)
    assert ids == []

    (finished(state)[1].parent / "piece.json").unlink()
    os.truncate(finished(state)[2], 5000)  # lost with the power
    run_prepare(items, out, state_dir=state)
    assert sorted(ids) == sorted(item.id for item in items[2:6])

    before = contents(out)
    write_pair(copied, items[0].id, size=(128, 256), seed=99)  # another image under the same name
    run_prepare(items, out, state_dir=state)
    changed = {name for name, digest in contents(out).items() if before[name] != digest}
    assert {"train/shard-00000.arrow", "train/index.parquet"} <= changed
    assert "train/shard-00001.arrow" not in changed

    ids.clear()
    run_prepare(items, out, state_dir=state, codec="webp")
    assert len(ids) == 6
    run_prepare(items[1:], out, state_dir=state, codec="webp")
    assert len(ids) == 11  # other items to a shard


def test_making_a_shard_anew_leaves_an_older_result_alone(raw, tmp_path):
    items = items_in(raw)[:2]
    run_prepare(items, tmp_path / "one", state_dir=tmp_path / "state")
    before = contents(tmp_path / "one")
    run_prepare(items[::-1], tmp_path / "two", state_dir=tmp_path / "state")
    assert contents(tmp_path / "one") == before != contents(tmp_path / "two")


def test_a_bad_file_is_named_and_can_be_mended(raw, tmp_path):
    copied = tmp_path / "raw"
    shutil.copytree(raw, copied)
    items = [item for item in items_in(copied) if item.split == "train"][:8]
    good = {n: items[n].image.read_bytes() for n in (1, 5)}
    for n, content in good.items():
        items[n].image.write_bytes(content[:200])
    with pytest.raises(
        DataError, match=rf"2 problem.*nothing was written\n.*{items[1].id}.*\n.*{items[5].id}"
    ):
        run_prepare(items, tmp_path / "out", state_dir=tmp_path / "state")
    assert not (tmp_path / "out").exists() and len(finished(tmp_path / "state")) == 2
    for n, content in good.items():
        items[n].image.write_bytes(content)
    run_prepare(items, tmp_path / "out", state_dir=tmp_path / "state")
    run_prepare(items, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_of_many_bad_files_the_rest_is_not_read(tmp_path, monkeypatch):
    pairs = [write_pair(tmp_path, f"i{n:02d}", size=(32, 64)) for n in range(30)]
    for image, _ in pairs:
        image.write_bytes(b"no image")
    ids = made(monkeypatch)
    with pytest.raises(DataError, match=r"20 problem\(s\)"):
        run_prepare([erp_item(*pair) for pair in pairs], tmp_path / "out", workers=1)
    assert len(ids) == 20


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_another_disk_or_no_hard_links(raw, tmp_path, monkeypatch, number):
    run_prepare(items_in(raw)[:3], tmp_path / "whole")

    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    run_prepare(items_in(raw)[:3], tmp_path / "out", state_dir=tmp_path / "state")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_memory_does_not_grow_with_the_pixels(tmp_path):
    image, label = tmp_path / "a.png", tmp_path / "a_label.png"
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(image)
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(label)
    script = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from raw_data import erp_item, run_prepare
folder = Path(sys.argv[2])
for count in (1200, 1200, 4200):
    items = (erp_item(folder / "a.png", folder / "a_label.png", id=str(n)) for n in range(count))
    run_prepare(items, folder / "out", height=32, width=64, shard_images=100)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    command = [sys.executable, "-c", script, str(HERE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, few, many = (int(line) / 1024 for line in done.stdout.split())
    # The pixels are 25 MB; what is known of an image is some 1 kB.
    assert many - few < 10, f"3000 images more cost {many - few:.1f} MB"
