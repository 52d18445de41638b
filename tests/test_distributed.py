"""Two processes train as one: the same losses and weights; a failure of one ends both."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from small_data import prepared
from two_processes import (
    ENCODERS,
    IMAGES,
    Numbers,
    hungry,
    linger,
    spike,
    train_both,
    vanish,
)

from panoda.config import ModelParams, OptimParams, PrototypeParams, PseudoLabelParams
from panoda.engine import launch as module
from panoda.engine.failures import OutOfMemory
from panoda.engine.launch import launch
from panoda.engine.preemption import EXIT_CODE, Preempted
from panoda.engine.resume_points import resume_points
from panoda.methods.supervised import SupervisedParams
from panoda.models.core.checkpoint import make_card, save_model
from panoda.models.core.registry import create_model
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.system.context import RunContext
from panoda.system.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain", "warmup", "adapt", "mixed")
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
    assert len([row for _, row in one.rows if any(key.endswith("grad_norm") for key in row)]) == 14
    for (step, expected), (_, found) in zip(one.rows, two.rows, strict=True):
        expected, found = ({k: v for k, v in r.items() if not k.endswith(TIMES)} for r in (expected, found))
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6), f"step {step}"
    everything = {key.partition("/")[2] for _, row in two.rows for key in row}
    assert {"adapt/loss/mpa_target", "adapt/loss/adversarial", "mixed/teacher/kept_share"} <= everything


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


def test_a_killed_process_is_named_and_ends_all(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    with pytest.raises(ChildProcessError, match="process 1 of 3 ended by SIGKILL.*resume point is kept"):
        launch(vanish, {"folder": tmp_path}, RunContext(devices=3))


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
    while any(position(folder, rank) < 5 for rank in range(2)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def position(folder: Path, rank: int, word: int = 1) -> int:
    """Step (or process id) that a process wrote down last; 0 before the first."""
    note = folder / f"pid{rank}"
    text = note.read_text() if note.exists() else ""
    return int(text.split()[word]) if text.count(" ") else 0


def test_a_run_goes_on_from_one_process_with_two_and_back(tmp_path):
    linger(folder=tmp_path, steps=3, context=RunContext(state_dir=tmp_path))
    process = start_lingering(tmp_path)
    process.terminate()
    _, words = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE and "Traceback" not in words, words
    done = max(resume_points(tmp_path))
    assert done > 5 and {position(tmp_path, rank) for rank in range(2)} == {done - 1}
    ended = linger(folder=tmp_path, steps=done + 2, context=RunContext(state_dir=tmp_path))
    assert ended == pytest.approx(linger(folder=tmp_path, steps=done + 2, context=RunContext()), rel=1e-5)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    process = start_lingering(tmp_path)
    workers = [position(tmp_path, rank, word=0) for rank in range(2)]
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not resume_points(tmp_path)


def test_a_request_to_stop_may_come_before_the_workers_begin(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "from panoda.system.context import RunContext\n"
        "from panoda.engine.launch import launch\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(2 * ('child' in os.environ))\n"
        "os.environ['child'] = ''\n"
        "def work(*, context): time.sleep(60)\n"
    )
    code = "import slow; slow.launch(slow.work, {}, slow.RunContext(devices=2))"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    for _ in range(3):  # its own, and those of both workers
        process.stdout.readline()
    process.terminate()
    _, words = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE and not words.count("Traceback"), words


def test_spikes_of_every_process_are_kept_once_when_a_run_goes_on(tmp_path):
    context = RunContext(devices=2, state_dir=tmp_path)
    assert launch(spike, {"folder": tmp_path, "steps": 64}, context) == {"spike0": 61, "spike1": 62}
    found = spike(folder=tmp_path, steps=70, context=RunContext(state_dir=tmp_path))
    assert list(found.values()) == [61, 62, 66]


def test_memory_that_runs_out_in_one_process_starts_all_again_until_nothing_is_left(tmp_path, caplog):
    logger = Numbers()
    context = RunContext(devices=2, state_dir=tmp_path, on_oom="accumulate", logger=logger)
    params = SupervisedParams(iterations=9, batch_size=4, optim=OptimParams(lr=0.1))
    with pytest.raises(
        OutOfMemory, match="step 8.* in 2 micro-batches.*Lower.*smaller micro-batches are not left"
    ) as caught:
        hungry(folder=tmp_path, params=params, context=context)
    assert "in process 1 of 2:\nTraceback" in caught.value.__notes__[0]
    assert "out of memory: stage" in caplog.text and "resume point with 2 micro-batches" in caplog.text
    assert {step: row.get("micro_batches", 1) for step, row in logger.rows} == {
        step: 1 + (step > 5) for step in range(1, 8)
    }
    # Seven steps of two processes, two of them in micro-batches, are those of one.
    alone = linger(folder=tmp_path, steps=7, context=RunContext())
    weight = torch.load(resume_points(tmp_path)[7])["components"]["model"]["weight"]
    assert weight.flatten().tolist() == pytest.approx(list(alone.values()), rel=1e-5)


class Foreign(Exception):
    """Does not come back from pickle."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (DataError("a.png: broken"), DataError, "a.png: broken"),
        (Preempted("SIGTERM: stopped"), Preempted, "SIGTERM: stopped"),
        (OSError(28, "No space left"), OSError, "[Errno 28] No space left"),
        (Foreign("odd", "er"), RuntimeError, "Foreign: odder"),
    ],
)
def test_errors_keep_class_text_and_traceback(error, kind, text):
    try:
        raise error
    except BaseException as raised:
        found = pickle.loads(pickle.dumps(module._portable(raised, "in process 1 of 2")))
    assert type(found) is kind and str(found).startswith(text)
    assert found.__notes__[0].startswith("in process 1 of 2:\nTraceback")


def test_what_the_first_process_logs_arrives_as_it_was():
    here, there = multiprocessing.Pipe(duplex=False)
    logger, workers = Mock(), module._Workers(RunContext(logger=Mock()))
    workers._logger, workers._links = logger, [here]
    far = module._PipeLogger(there)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    far.log_image("a", image[:, ::2], 3)
    far.log_metrics({"loss": 0.1 + 0.2}, 4)
    far.log_figure("f.png", Figure())
    there.close()
    workers._listen()
    assert np.array_equal(logger.log_image.call_args.args[1], image[:, ::2])
    logger.log_metrics.assert_called_once_with({"loss": 0.1 + 0.2}, 4)
    assert isinstance(logger.log_figure.call_args.args[1], Figure)
