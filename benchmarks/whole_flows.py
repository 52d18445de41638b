"""Seconds and peak memory of every stage of the pipeline, as DVC runs them, in a copy of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Row, Settings
from panoda.config.scenarios import Scenario, open_scenario
from panoda.pipeline.table import STAGES

ROOT = Path(__file__).parents[1]


def rows(settings: Settings) -> Iterator[Row]:
    """One row per stage of scenario city (or city_small, with ``quick``), and their sum."""
    scenario = open_scenario("city_small" if settings.quick else "city", folder=ROOT / "scenarios")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        _copy(project, scenario)
        total, highest = 0.0, 0.0
        for stage in STAGES.values():
            roles = list(scenario.params().data.domains) if stage.per_role else [None]
            for role in roles:
                seconds, memory = _run(project, stage.name, role)
                total, highest = total + seconds, max(highest, memory)
                yield {
                    "scenario": scenario.asked,
                    "stage": stage.label(role),
                    "seconds": seconds,
                    "peak MB": memory,
                }
        yield {"scenario": scenario.asked, "stage": "all", "seconds": total, "peak MB": highest}


def _copy(project: Path, scenario: Scenario) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    (project / "params.yaml").write_text(scenario.text(), encoding="utf-8")


def _run(project: Path, stage: str, role: str | None) -> tuple[float, float]:
    """Wall-clock seconds of a stage's process and its peak memory in MB; ValueError where it fails."""
    command = [sys.executable, "-m", f"flows.{stage}", "--pipeline", *(["--role", role] if role else [])]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=project, env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            printed.seek(0)
            raise ValueError(f"stage {stage} failed in the benchmark:\n{printed.read()[-2000:]}")
    return seconds, usage.ru_maxrss / 1024
