"""Temporary copies of the project for tests of DVC, with real stages or with quick doubles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from panoda.config.scenarios import open_scenario
from panoda.pipeline.table import STAGES

ROLES = ("source", "target", "second")
"""Domains that doubles exist for; scenarios need not have the last."""
ROOT = Path(__file__).resolve().parents[1]
COPIED = ("flows", "panoda", "scenarios", "dvc.yaml", "prefect.toml", ".dvcignore", ".gitignore")

# Stands for a stage: writes files that follow from its parameters and inputs, in no time and without imports
# of the project. double.json says which, for every stage.
DOUBLE = """
import hashlib, json, os, sys
from pathlib import Path
import yaml

arguments = sys.argv[1:]
if arguments[1] == "panoda.pipeline.watch":
    os.execv(sys.executable, [sys.executable, *arguments])
label = arguments[1].removeprefix("flows.")
if "--role" in arguments:
    label += "@" + arguments[arguments.index("--role") + 1]
stage = json.loads(Path("double.json").read_text())[label]
total = hashlib.sha256(label.encode())
for section in stage["sections"]:
    value = yaml.load(Path("params.yaml").read_text(), yaml.CSafeLoader)
    for part in section.split("."):
        value = value[part]
    total.update(json.dumps(value).encode())
for given in stage["inputs"]:
    for file in sorted([Path(given), *Path(given).rglob("*")]):
        total.update(file.read_bytes() if file.is_file() else b"")
text = total.hexdigest()
METRICS = ("metrics.json", "headlines.json")
for name in stage["writes"]:
    path = Path(stage["out"], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"value": int(text[:6], 16)}) if name in METRICS else text)
with open("ran.txt", "a") as log:
    log.write(label + "\\n")
"""
WRITES = {
    "download": ["raw"],
    "weights": ["report.json", "metrics.json"],
    "ssl_pretrain": ["encoder/report.json", "metrics.json"],
    "preprocess": ["train/index.parquet", "val/index.parquet", "test/index.parquet", "statistics.json"],
    "pseudo_labels": ["index.parquet", "metrics.json"],
    "prototypes": ["prototypes.safetensors", "metrics.json"],
    "rounds": ["metrics.json"],
    "evaluate": ["per_class.csv", "metrics.json", "headlines.json"],
    "report": ["index.html"],
}


def double_table() -> dict[str, dict[str, object]]:
    """What the double writes for every stage in dvc.yaml."""
    return {
        stage.label(role): {
            "sections": [section.format(role=role) for section in stage.sections],
            "inputs": [str(path) for path in stage.input_paths(role).values()],
            "out": str(stage.out_path(role)),
            "writes": WRITES.get(stage.name, ["model.safetensors", "metrics.json"]),
        }
        for stage in STAGES.values()
        for role in (ROLES if stage.per_role else (None,))
    }


class ProjectCopy:
    """A copy of the project in its own Git and DVC repository."""

    def __init__(self, folder: Path, scenario: str | Path, *, doubles: bool):
        """Copy the project with a scenario into ``folder``; ``doubles`` replaces the stages by quick ones."""
        self.folder = folder
        quiet = shutil.ignore_patterns("__pycache__")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=quiet)
            else:
                shutil.copy(source, folder / name)
        (folder / "data" / "prepared" / "more_sources").mkdir(parents=True)
        (folder / "data" / "weights").mkdir()
        (folder / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
        params = open_scenario(scenario, folder=ROOT / "scenarios").text()
        (folder / "params.yaml").write_text(params, encoding="utf-8")
        if doubles:
            (folder / "double.py").write_text(DOUBLE)
            (folder / "double.json").write_text(json.dumps(double_table()))
            script = f'#!/bin/sh\nexec "{sys.executable}" double.py "$@"\n'
            (folder / "flows" / "python.sh").write_text(script)
            with (folder / ".gitignore").open("a") as ignored:
                ignored.write("/ran.txt\n")
        self.run("git", "init", "--quiet")
        self.commit("start")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy."""
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "GIT_"))},
            "PYTHONPATH": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(Path(sys.executable).parents[1]),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *arguments: str) -> str:
        """Run DVC; returns what it prints."""
        return self.run(sys.executable, "-m", "dvc", *arguments).stdout

    def repro(self, *arguments: str) -> set[str]:
        """``dvc repro``; returns the stages that ran, without those that look at folders every time."""
        printed = self.dvc("repro", *arguments)
        ran = {line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")}
        return {stage for stage in ran if not stage.startswith("watch")}

    def status(self) -> dict[str, object]:
        """``dvc status``: stage -> what changed; without those that are never up to date."""
        found = json.loads(self.dvc("status", "--json"))
        return {stage: changes for stage, changes in found.items() if not stage.startswith("watch")}

    def commit(self, message: str) -> None:
        """Commit everything to Git."""
        self.run("git", "add", "--all")
        name = ("-c", "user.name=n", "-c", "user.email=a@example.org")
        self.run("git", *name, "commit", "--quiet", "--message", message)

    def set(self, key: str, value: object) -> object:
        """Change one parameter in params.yaml; returns the old value."""
        path = self.folder / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        *parents, leaf = key.split(".")
        node = tree
        for part in parents:
            node = node[part]
        old, node[leaf] = node[leaf], value
        assert old != value
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return old

    def lock(self, stage: str) -> dict[str, str]:
        """Path -> digest of everything dvc.lock says about a stage."""
        entry = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"][stage]
        return {item["path"]: item["md5"] for item in entry["deps"] + entry["outs"]}

    def record(self, run: Path) -> dict[str, object]:
        """A run's run.json."""
        return dict(json.loads((self.folder / run / "run.json").read_text()))
