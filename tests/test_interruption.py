"""A stage stopped or killed under its flow goes on in the same MLflow run; a changed one starts clean."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import prepared

pytest.importorskip("prefect")
pytest.importorskip("mlflow")

from flows.execution import stage_run
from flows.job import Job
from panoda.config import load_params
from panoda.config.scenarios import open_scenario
from panoda.engine.preemption import EXIT_CODE
from panoda.stages.pretrain import pretrain as stage
from panoda.system.context import RunContext
from panoda.tracking import connect

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).resolve().parents[1]
STEPS = 40
SETTINGS = [
    "label_space=cs13",
    f"pretrain.iterations={STEPS}",
    "runtime.checkpoint_every=100",
    "runtime.log_every=1",
    "pretrain.validate_every=8",
    "pretrain.augment.crop_height=32",
    "pretrain.augment.crop_width=64",
    f"runtime.threads={torch.get_num_threads()}",
    "runtime.device=cpu",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "prefect.toml", tmp_path)
    (tmp_path / "params.yaml").write_text(open_scenario("city_small", folder=ROOT / "scenarios").text())
    prepared(tmp_path / "data", {"train": 4, "val": 2}, erp=False)
    shutil.move(tmp_path / "data/prepared", tmp_path / "source")
    (tmp_path / "data/prepared").mkdir(parents=True)
    shutil.move(tmp_path / "source", tmp_path / "data/prepared/source")
    (tmp_path / "outputs/weights").mkdir(parents=True)
    (tmp_path / "outputs/weights/report.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def _start(out: str) -> subprocess.Popen[str]:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "flows.pretrain", "--out", out, *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _steps(project: Path) -> list[int]:
    """Steps of the loss in the only run of the store."""
    client = connect(f"sqlite:///{project}/mlflow.db")
    found = client.get_experiment_by_name("city_small")
    runs = client.search_runs([found.experiment_id]) if found else []
    assert len(runs) <= 1, "a resumed stage must go on in its run"
    if not runs:
        return []
    return [point.step for point in client.get_metric_history(runs[0].info.run_id, "loss/total")]


def _wait_for(process: subprocess.Popen[str], step: int) -> None:
    """Until a stage has saved step ``step``, which is a validated one."""
    deadline = time.monotonic() + 120
    while not list(Path(".panoda/state").glob(f"pretrain-*/resume-{step:08d}.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_a_changed_parameter_input_or_line_of_code_starts_clean(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def goes_on(*changes: str) -> bool:
        with (
            pytest.raises(InterruptedError),
            stage_run("pretrain", Job(overrides=[*SETTINGS, *changes], out="runs/x")) as run,
        ):
            assert run.context.state_dir is not None
            note = run.context.state_dir / "note"
            found = note.exists()
            note.touch()
            raise InterruptedError
        return found

    assert not goes_on() and goes_on()
    assert not goes_on("pretrain.optim.lr=0.5") and goes_on()
    Path("data/prepared/source/train/more").write_text("")
    assert not goes_on() and goes_on()
    monkeypatch.setattr("panoda.pipeline.runs.code_digest", lambda *_, **__: "of other lines")
    assert not goes_on()


def test_a_flow_stopped_before_its_stage_begins_ends_with_the_stated_code(project: Path) -> None:
    process = _start("runs/early")
    while not Path(".prefect/temporary_server.log").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE and "SIGTERM: stopped" in errors and "Traceback" not in errors


def test_a_killed_and_then_preempted_flow_goes_on_in_the_same_run(project: Path) -> None:
    process = _start("runs/killed")
    _wait_for(process, 8)
    process.kill()
    process.communicate(timeout=120)
    killed = json.loads(Path("runs/killed/run.json").read_text())
    assert killed["status"] == "running" and not Path("runs/killed/model.safetensors").exists()

    process = _start("runs/stopped")
    _wait_for(process, 16)
    while process.poll() is None:  # schedulers repeat it, until the last moment
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE, errors
    assert "SIGTERM: stopped after step" in errors and f"of {STEPS}" in errors and "Traceback" not in errors
    assert not Path("runs/stopped/model.safetensors").exists()
    stopped = json.loads(Path("runs/stopped/run.json").read_text())
    assert stopped["status"] == "failed" and "SIGTERM" in stopped["error"]
    logged = _steps(project)  # also those that the killed process had not sent yet, and none of them twice
    assert 16 <= len(logged) < STEPS and sorted(logged) == [*range(1, len(logged) + 1)]

    params = load_params(Path("params.yaml"), SETTINGS)
    arguments = {"model": params.model, "params": params.pretrain, "seed": params.seed}
    with stage_run("pretrain", Job(overrides=SETTINGS, out="runs/again")) as run:
        stage(**run.inputs, **arguments, out=run.out, context=run.context)
    assert sorted(_steps(project)) == list(range(1, STEPS + 1))
    record = json.loads(Path("runs/again/run.json").read_text())
    assert record["mlflow_run_id"] == stopped["mlflow_run_id"] == killed["mlflow_run_id"]
    assert (
        connect(os.environ["MLFLOW_TRACKING_URI"]).get_run(record["mlflow_run_id"]).info.status == "FINISHED"
    )
    assert not list(Path(".panoda/state").iterdir())
    stage(**run.inputs, **arguments, out=Path("whole"), context=RunContext())
    whole, resumed = load_file("whole/model.safetensors"), load_file("runs/again/model.safetensors")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)
