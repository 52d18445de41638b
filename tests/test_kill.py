"""kill -9 at random moments: the run that goes on ends bit-identical, with nothing left over."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from small_data import prepared

from benchmarks.kills import MODELS, SETTINGS, Killer, Result, digests, table, torment
from panoda.engine.resume_points import resume_points
from panoda.system.files import staged_directory, staged_file

SMALL = (
    *SETTINGS,
    "label_space=cs13",
    "pretrain.iterations=8",
    "pretrain.validate_every=4",
    "runtime.checkpoint_every=2",
    "warmup.iterations=6",
    "adapt.iterations=8",
    "adapt.mpa.refresh_every=3",
    *(
        f"{s}.crop_{side}={size}"
        for s in ("pretrain.augment", "warmup.augment_source", "adapt.augment_source")
        for side, size in (("height", 32), ("width", 64))
    ),
)


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    """Of a project whose stages have not run yet."""
    root = tmp_path_factory.mktemp("kill") / "project"
    for role, splits, labels in (
        ("source", {"train": 4, "val": 2}, True),
        ("target", {"train": 3}, False),
        ("seen", {"test": 2}, True),
    ):
        made = prepared(root / role, splits, erp=role != "source", labels=labels, shade=-40)
        shutil.copytree(
            made, root / "data/prepared" / ("source" if role == "source" else "target"), dirs_exist_ok=True
        )
    (root / "outputs/weights").mkdir(parents=True)
    (root / "outputs/weights/report.json").write_text("{}")
    return Killer(root, SMALL)


@pytest.mark.parametrize("stage", MODELS)
def test_a_stage_killed_at_random_moments_ends_with_the_same_bytes(stage, killer, tmp_path):
    seconds = killer.finish(stage, tmp_path / "whole")
    chance = random.Random(time.time_ns())
    result = torment(killer, stage, tmp_path / "whole/out", seconds, tmp_path / "killed", 2, chance)
    assert result.identical, table({stage: result})
    assert result.files and len(result.kills) == 2
    for state in (tmp_path / "killed").glob("*/state"):
        points = {path.name for path in resume_points(state).values()}
        left = {p.name for p in state.iterdir()} - points
        assert left <= {"pieces", "round2", "best.safetensors"}, "a half-written point"
    # Killed when the result was in place, before the flow had removed the resume folder.
    expected = digests(tmp_path / "whole/out")
    killer.finish(stage, tmp_path / "whole")
    assert digests(tmp_path / "whole/out") == expected
    (tmp_path / "whole/out").rename(killer.root / "outputs" / stage)  # the next stage reads it


def test_the_comparison_sees_one_bit(tmp_path):
    """A harness that cannot fail proves nothing."""

    class Careless(Killer):
        def __init__(self):
            self.runs = 0

        def kill(self, stage, here, seconds):
            return True

        def finish(self, stage, here):
            self.runs += 1
            (here / "out").mkdir(parents=True, exist_ok=True)
            (here / "out/model.safetensors").write_text(str(self.runs))
            return 0.0

    killer = Careless()
    killer.finish("pretrain", tmp_path / "whole")
    result = torment(killer, "pretrain", tmp_path / "whole/out", 1.0, tmp_path / "k", 1, random.Random(0))
    assert not result.identical and "| NO |" in table({"pretrain": result})
    assert "| yes |" in table({"pretrain": Result(1.0)})


def test_what_a_killed_writer_left_is_removed_and_a_folder_it_had_set_aside_comes_back(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from panoda.system import files
out, rename = Path(sys.argv[1]), os.replace
def die(source, target):
    if str(source).endswith(".tmp"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = die
with files.staged_directory(out) as folder:
    (folder / "new").write_text("new")
"""
    out = tmp_path / "out"
    with staged_directory(out) as folder:
        (folder / "old").write_text("old")
    done = subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL and not out.exists()
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(RuntimeError), staged_directory(out):
        assert (out / "old").read_text() == "old"
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    nested = script.replace("(out)", "(out) as outer, files.staged_directory(outer)")
    done = subprocess.run([sys.executable, "-c", nested, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(".")]) >= 2
    with pytest.raises(RuntimeError), staged_directory(out):
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (out / "old").read_text() == "old"
    other = tmp_path / f".out.elsewhere.{os.getpid()}.tmp"  # another machine's: not ours to judge
    other.write_text("x")
    with staged_file(tmp_path / "out.json") as aside:
        aside.write_text("{}")
    assert other.exists()
