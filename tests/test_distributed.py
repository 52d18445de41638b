"""Two processes train as one: the same losses and weights; a failure of one ends both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_data import prepared
from two_processes import (
    ENCODERS,
    IMAGES,
    Numbers,
    fail_alone,
    hungry,
    linger,
    spike,
    train_both,
    vanish,
    vanish_from_work,
)

from panoda.config import ModelParams, OptimParams, PrototypeParams, PseudoLabelParams
from panoda.engine.failures import OutOfMemory
from panoda.engine.launch import launch
from panoda.engine.preemption import EXIT_CODE
from panoda.engine.resume_points import resume_points
from panoda.methods.supervised import SupervisedParams
from panoda.models.core.checkpoint import make_card, save_model
from panoda.models.core.registry import create_model
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.system.context import RunContext

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain", "warmup", "adapt")
TIMES = ("steps_per_second", "data_wait_share")


@pytest.fixture(scope="module", autouse=True)
def importable() -> None:
    """Workers find the functions of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Numbers, Numbers]:
    """The stages of two models in one process and in two, and what they logged."""
    roots = {kind: tmp_path_factory.mktemp(kind) for kind in ENCODERS}
    for kind, root in roots.items():
        start(root, ENCODERS[kind])
    one, two = Numbers(), Numbers()
    train_both(roots=roots, name="one", context=RunContext(logger=one))
    launch(train_both, {"roots": roots, "name": "two"}, RunContext(logger=two, devices=2))
    return roots, one, two


def start(root: Path, encoder: dict[str, Any]) -> None:
    """Data of both domains, a model, and pseudo-labels and prototypes of it."""
    for role, erp in (("source", False), ("target", True)):
        prepared(root / "raw" / role, IMAGES, erp=erp, labels=not erp, shade=25 * erp)
        (root / "raw" / role / "prepared").rename(root / role)
    torch.manual_seed(0)
    params = ModelParams(**encoder)
    net = create_model(params.encoder, num_classes=13, decoder=params.decoder, drop_path=params.drop_path)
    save_model(root / "start.safetensors", net, make_card(net, label_space="cs13", stage="pretrain", seed=0))
    common = {"checkpoint": root / "start.safetensors", "target_train": root / "target/train"}
    pseudo_labels(
        **common,
        out=root / "pseudo_labels",
        params=PseudoLabelParams(scales=(1.0,), quantile=0.3),
        context=RunContext(),
    )
    prototypes(
        **common,
        source_train=root / "source/train",
        pseudo_labels=root / "pseudo_labels",
        out=root / "prototypes",
        params=PrototypeParams(scales=(1.0,)),
        context=RunContext(),
    )


def test_every_logged_value_is_that_of_one_process(runs):
    _, one, two = runs
    assert [step for step, _ in two.rows] == [step for step, _ in one.rows]
    assert len([row for _, row in one.rows if "vit/grad_norm" in row or "nano/grad_norm" in row]) == 10
    for (step, expected), (_, found) in zip(one.rows, two.rows, strict=True):
        expected, found = ({k: v for k, v in r.items() if not k.endswith(TIMES)} for r in (expected, found))
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6), f"step {step}"
    everything = {key.partition("/")[2] for _, row in two.rows for key in row}
    assert {"loss/mpa_target", "loss/adversarial", "loss/discriminator", "teacher/kept_share"} <= everything


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ENCODERS)
def test_final_weights_are_those_of_one_process(runs, kind, stage):
    root = runs[0][kind]
    one, two = (load_file(root / name / stage / "model.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    before = load_file(root / "start.safetensors")
    assert sum(float((one[k] - before[k]).abs().max()) > 1e-4 for k in one) > len(one) / 5
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_prototypes_are_those_of_one_process(runs, kind):
    root = runs[0][kind]
    one, two = (load_file(root / name / "adapt/prototypes.safetensors") for name in ("one", "two"))
    before = load_file(root / "prototypes/prototypes.safetensors")
    assert not torch.equal(one["mutual"], before["mutual"])
    torch.testing.assert_close(two["mutual"], one["mutual"], rtol=1e-3, atol=1e-4)
    assert torch.equal(two["seen"], one["seen"])


@pytest.mark.parametrize("kind", ENCODERS)
def test_one_process_writes_the_same_files(runs, kind):
    root = runs[0][kind]
    for stage in STAGES:
        files = [sorted(p.name for p in (root / name / stage).rglob("*")) for name in ("one", "two")]
        assert files[0] == files[1]
    assert not list((root / "two").glob(".*"))


def test_an_error_of_one_process_is_the_error_and_ends_all():
    with pytest.raises(ValueError, match="this image is broken") as caught:
        launch(fail_alone, {}, RunContext(devices=2))
    assert any("in process 1 of 2" in note for note in caught.value.__notes__)


def test_a_temporary_folder_too_long_for_a_socket_is_not_used(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ValueError, match="this image is broken"):
        launch(fail_alone, {}, RunContext(devices=2))
    assert not list(folder.iterdir())


def test_a_killed_process_ends_all_and_is_reported():
    with pytest.raises(ChildProcessError, match="without a word") as caught:
        launch(vanish, {}, RunContext(devices=2))
    assert "SIGKILL" in str(caught.value) or "-9" in str(caught.value)


def test_the_end_of_the_others_is_no_request_to_stop(tmp_path):
    with pytest.raises(ChildProcessError, match="without a word"):
        launch(vanish_from_work, {"folder": tmp_path}, RunContext(devices=2))


def test_nobody_waits_for_workers_of_a_launch_that_is_over(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    threads = set(threading.enumerate())
    with pytest.raises(ChildProcessError, match="without a word"):
        launch(vanish, {}, RunContext(devices=2))
    time.sleep(0.1)  # the other one reads the end of torchrun's words
    assert set(threading.enumerate()) <= threads


def command_line(pid: str) -> bytes:
    """Of a process; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def start_lingering(folder: Path) -> subprocess.Popen[str]:
    """A process of its own that has two processes train for ever, and whose training has begun."""
    code = (
        "from pathlib import Path; from panoda.system.context import RunContext;"
        "from panoda.engine.launch import launch; from two_processes import linger;"
        f"folder = Path({str(folder)!r});"
        "launch(linger, {'folder': folder, 'steps': 10**6}, RunContext(devices=2, state_dir=folder))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while any(position(folder, rank) < 3 for rank in range(2)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def position(folder: Path, rank: int, word: int = 1) -> int:
    """Step (or process id) that a process wrote down last; 0 before the first."""
    note = folder / f"pid{rank}"
    text = note.read_text() if note.exists() else ""
    return int(text.split()[word]) if text.count(" ") else 0


def test_a_request_to_stop_saves_one_step_and_the_run_goes_on(tmp_path):
    process = start_lingering(tmp_path)
    process.terminate()
    _, words = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE, words
    done = max(resume_points(tmp_path))
    assert done > 3 and {position(tmp_path, rank) for rank in range(2)} == {done - 1}
    steps = done + 2
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    numbers = Numbers()
    found = launch(
        linger,
        {"folder": tmp_path, "steps": steps, "accumulate": 2},
        RunContext(devices=2, state_dir=tmp_path, logger=numbers),
    )
    assert [step for step, _ in numbers.rows] == [*range(1, done + 3)] and found["steps"] == steps
    alone = linger(folder=tmp_path, steps=steps, context=RunContext())
    assert found == pytest.approx(alone, rel=1e-5)
    # What two processes began, one can end.
    ended = linger(folder=tmp_path, steps=steps, context=RunContext(state_dir=copy))
    assert ended == pytest.approx(alone, rel=1e-5)


def test_a_request_to_stop_may_come_before_the_workers_begin(tmp_path):
    stage = """
import time
from panoda.system.context import RunContext
from panoda.engine.launch import launch
from panoda.engine.messages import launchable

time.sleep(2)  # as real stages, which import much

@launchable
def work(*, context):
    time.sleep(60)
    return {}
"""
    (tmp_path / "slow.py").write_text(stage)
    code = "import slow; slow.launch(slow.work, {}, slow.RunContext(devices=2))"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not any(b"torch.distributed.run" in command_line(pid) for pid in children.read_text().split()):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)  # it listens now, and nobody has joined: that takes seconds
    process.terminate()
    _, words = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE and "Preempted" not in words, words


def test_spikes_of_every_process_are_kept_once_when_a_run_goes_on(tmp_path):
    context = RunContext(devices=2, state_dir=tmp_path)
    assert launch(spike, {"folder": tmp_path, "steps": 64}, context) == {"spike0": 61, "spike1": 62}
    found = launch(spike, {"folder": tmp_path, "steps": 70}, context)
    assert list(found.values()) == [61, 62, 66, 67]


def test_all_start_again_with_micro_batches_when_one_process_runs_out_of_memory(tmp_path, caplog):
    logger = Numbers()
    context = RunContext(devices=2, state_dir=tmp_path, on_oom="accumulate", logger=logger)
    params = SupervisedParams(iterations=8, batch_size=4, optim=OptimParams(lr=0.1))
    found = hungry(folder=tmp_path, params=params, least=1, context=context)
    assert list(found.values()) == [1.0] * 5 + [2.0] * 3  # five of the first attempt
    assert {step for step, _ in logger.rows} == set(range(1, 9))
    assert "out of memory: stage" in caplog.text and "resume point with 2 micro-batches" in caplog.text


def test_memory_that_does_not_suffice_for_one_sample_ends_all(tmp_path):
    context = RunContext(devices=2, state_dir=tmp_path, on_oom="accumulate")
    params = SupervisedParams(iterations=8, batch_size=4, accumulate=2, optim=OptimParams(lr=0.1))
    with pytest.raises(
        OutOfMemory, match="step 6.* in 2 micro-batches.*Lower.*smaller micro-batches are not left"
    ):
        hungry(folder=tmp_path, params=params, least=0, context=context)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    process = start_lingering(tmp_path)
    workers = [position(tmp_path, rank, word=0) for rank in range(2)]
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
