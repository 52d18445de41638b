"""Stages as jobs of submitit: on this machine, as they would run on a node."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prefect")
pytest.importorskip("submitit")

from flows import slurm
from flows.slurm import StageJob, main

STAGE = """
import signal, sys, time
from pathlib import Path

def save(*_):
    Path("state").write_text("half")
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
print("arguments", *sys.argv[1:], flush=True)
if "--fail" in sys.argv:
    sys.exit(1)
if "--slow" in sys.argv and not Path("state").exists():
    Path("started").write_text("")
    time.sleep(60)
Path("done").write_text(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose stage evaluate is a double; submitit's own processes find the real package."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/evaluate.py").write_text(STAGE)
    (tmp_path / "flows/__init__.py").write_text("")
    shutil.copy(slurm.__file__, tmp_path / "flows")  # submitit's process imports it from the project
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return tmp_path


def test_a_stage_runs_as_a_job_with_its_arguments(project: Path) -> None:
    words = [
        "evaluate",
        "--set",
        "evaluate.flip=true",
        "--",
        "--cluster",
        "local",
        "--wait",
        "--minutes",
        "1",
    ]
    command = [sys.executable, "-m", "flows.slurm", *words]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert (project / "done").read_text() == "--set evaluate.flip=true"
    assert printed.startswith("evaluate: job ")
    output = Path(printed.split("output in ")[1].strip())
    assert project / ".panoda/slurm" in output.parents
    assert "arguments --set evaluate.flip=true" in output.read_text()


def test_a_failing_stage_fails_the_job(project: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--fail", "--", "--cluster", "local", "--wait", "--minutes", "1"])
    assert ended.value.code == 1
    assert "flows.evaluate --fail ended with code 1" in capsys.readouterr().err


def test_before_the_time_limit_it_saves_and_goes_on_in_another_job(project: Path) -> None:
    job = StageJob("evaluate", ["--slow"], project)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(job()))
    thread.start()
    end = time.monotonic() + 30
    while not (project / "started").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert job._process is not None
    job._process.send_signal(signal.SIGUSR2)  # SLURM sends it to all processes, submitit calls checkpoint
    delayed = job.checkpoint()
    thread.join()
    assert codes == [75] and (project / "state").read_text() == "half" and not (project / "done").exists()
    again = pickle.loads(pickle.dumps(delayed.function))
    assert (again.stage, again.arguments, again.root) == ("evaluate", ["--slow"], project)
    assert again() == 0 and (project / "done").exists()


def test_requests_that_cannot_be_met_say_why(project: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(project))  # no sbatch
    for words, message in (
        (["evaluat"], "unknown stage 'evaluat'"),
        (["evaluate"], "--cluster local"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit):
        main(["evaluate"])
    assert "install panoda[cluster]" in capsys.readouterr().err


def test_the_job_asks_for_what_was_wanted(project: Path, monkeypatch: Any) -> None:
    """With a SLURM that only keeps the script: the options end up in it."""
    tools = project / "bin"
    tools.mkdir()
    kept = project / "script.sh"
    (tools / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {kept}\necho "Submitted batch job 42"\n')
    (tools / "srun").write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    asked = [
        "--partition",
        "a100",
        "--gpus",
        "4",
        "--cpus",
        "16",
        "--memory",
        "64GB",
        "--slurm",
        "account=me",
    ]
    main(["evaluate", "--", *asked, "--minutes", "90"])
    script = kept.read_text()
    for line in (
        "partition=a100",
        "gpus-per-node=4",
        "cpus-per-task=16",
        "mem=64GB",
        "account=me",
        "time=90",
    ):
        assert f"#SBATCH --{line}" in script
    assert "job-name=panoda-evaluate" in script and "signal=" in script
    assert slurm.FOLDER.is_dir()
