"""kill -9 at random moments: the run that goes on ends bit-identical, with nothing left over."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import prepared

from panoda.files import staged_directory, staged_file
from panoda.training.checkpoint import resume_points

HERE = Path(__file__).parent
STEPS = 12
# One stage, resumable at every step. Run with the number of threads of the test process: sums depend on it.
SCRIPT = """
import sys
from pathlib import Path
import torch
from panoda.config import AugmentParams, ModelParams, OptimParams, PretrainParams, WarmupParams
from panoda.stages.pretrain import pretrain
from panoda.stages.warmup import warmup
from panoda.training.context import RunContext

stage, root, here, steps, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])
torch.set_num_threads(threads)
common = dict(
    source_train=root / "source/prepared/train",
    out=here / "out",
    seed=0,
    context=RunContext(state_dir=here / "state"),
)
schedule = dict(iterations=steps, batch_size=2, optim=OptimParams(lr=1e-3), checkpoint_every=1, log_every=1)
crop = AugmentParams(crop_height=32, crop_width=64)
if stage == "pretrain":
    params = PretrainParams(**schedule, augment=crop, validate_every=4)
    pretrain(**common, source_val=root / "source/prepared/val", model=ModelParams(), params=params)
else:
    warmup(
        **common,
        checkpoint=root / "model.safetensors",
        target_train=root / "target/prepared/train",
        params=WarmupParams(**schedule, augment_source=crop),
    )
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    prepared(folder / "source", {"train": 4, "val": 2}, erp=False)
    prepared(folder / "target", {"train": 3}, erp=True, labels=False, shade=-40)
    return folder


def _start(stage: str, root: Path, here: Path) -> subprocess.Popen:
    words = [stage, str(root), str(here), str(STEPS), str(torch.get_num_threads())]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *words], stderr=subprocess.PIPE, text=True)


def _finish(stage: str, root: Path, here: Path) -> dict[str, torch.Tensor]:
    process = _start(stage, root, here)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return load_file(here / "out/model.safetensors")


def _kill_somewhere(stage: str, root: Path, here: Path, chance: random.Random) -> None:
    """Kill the stage a random moment after its next resume point."""
    before = max(resume_points(here / "state"), default=0)
    process = _start(stage, root, here)
    while process.poll() is None and max(resume_points(here / "state"), default=0) == before:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("stage", ["pretrain", "warmup"])
def test_a_stage_killed_at_random_moments_ends_bit_identical(stage, root, tmp_path):
    whole = _finish(stage, root, tmp_path / "whole")
    if stage == "pretrain":
        (root / "model.safetensors").write_bytes((tmp_path / "whole/out/model.safetensors").read_bytes())
    chance = random.Random(time.time_ns())
    for _ in range(2):
        _kill_somewhere(stage, root, tmp_path / "killed", chance)
    resumed = _finish(stage, root, tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {"out", "state"}
    points = {path.name for path in resume_points(tmp_path / "killed/state").values()}
    assert {p.name for p in (tmp_path / "killed/state").iterdir()} == points


def test_what_a_killed_writer_left_is_removed_and_a_folder_it_had_set_aside_comes_back(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from panoda import files
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
    other = tmp_path / f".out.elsewhere.{os.getpid()}.tmp"  # another machine's: not ours to judge
    other.write_text("x")
    with staged_file(tmp_path / "out.json") as aside:
        aside.write_text("{}")
    assert other.exists()
