"""What stands before the pipeline on an ordinary machine: Git or none, environments, proxies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "flows" / "python.sh"


def make_scm(folder: Path) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", "scm"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "say CAMVID=FOLDER: CamVid with train, trainannot, val and valannot"),
        (["CAMVID=nowhere"], "CAMVID=nowhere: no such folder"),
        (["CAMVID=city", "PANORAMAS=city"], "CAMVID=city: no folder valannot in it"),
        (["CAMVID=camvid"], "say PANORAMAS=FOLDER: a folder of panoramas"),
        (["CAMVID=camvid", "PANORAMAS=city", "FACADE=city"], "FACADE=city: no folder images in it"),
        (["CAMVID=camvid", "PANORAMAS=city"], ""),
    ],
)
def test_the_real_demo_says_which_folder_is_missing(tmp_path: Path, given: list[str], said: str) -> None:
    for part in ("train", "trainannot", "val", "valannot"):
        (tmp_path / "camvid" / part).mkdir(parents=True)
        if part != "valannot":
            (tmp_path / "city" / part).mkdir(parents=True)
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", ROOT / "Makefile", "real-folders", *given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert said in done.stdout and bool(done.returncode) == bool(said)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """An unpacked archive of the project, or as much of it as set-up looks at, in somebody's repository."""
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    folder = tmp_path / "panoda"
    (folder / ".dvc").mkdir(parents=True)
    for name in ("Makefile", "dvc.yaml", ".dvc/config"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_without_git_dvc_is_told_once_and_the_user_every_time(download: Path) -> None:
    local = download / ".dvc" / "config.local"
    for _ in range(2):
        assert make_scm(download).startswith("no Git repository: DVC works without one")
        assert local.read_text() == "[core]\n    no_scm = true\n"
    subprocess.run(["git", "init", "--quiet"], cwd=download, check=True)
    assert make_scm(download) == "" and "no_scm" not in local.read_text()


def test_a_project_tracked_within_a_larger_repository_keeps_git(download: Path) -> None:
    subprocess.run(["git", "add", "panoda"], cwd=download.parent, check=True)
    assert make_scm(download) == "" and not (download / ".dvc" / "config.local").exists()


def python(folder: Path, word: str, *, works: bool = True) -> Path:
    """A stand-in for Python: it says ``word``; asked what it can import, ``works`` is its answer."""
    file = folder / "bin" / "python"
    file.parent.mkdir(parents=True)
    file.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {int(not works)}\necho {word} "$@"\n')
    file.chmod(0o755)
    return folder


def run_script(folder: Path, path: str = "/usr/bin:/bin", **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        ["/bin/sh", str(SCRIPT), "-m", "flows.adapt"],
        cwd=folder,
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_projects_own_environment_wins(tmp_path: Path) -> None:
    other = python(tmp_path / "other", "other")
    project = tmp_path / "project"
    python(project / ".venv", "own")
    below = project / ".dvc" / "tmp" / "exps"
    below.mkdir(parents=True)
    for folder in (project, below):
        assert run_script(folder, VIRTUAL_ENV=str(other)) == (0, "own -m flows.adapt\n")


def test_without_one_the_first_active_one_that_has_the_packages_is_taken(tmp_path: Path) -> None:
    good, bare = python(tmp_path / "good", "good"), python(tmp_path / "bare", "bare", works=False)
    project = tmp_path / "project"
    python(project / ".venv", "half made", works=False)
    gone = str(tmp_path / "gone")
    for active in (
        {"VIRTUAL_ENV": str(good), "CONDA_PREFIX": str(bare)},
        {"VIRTUAL_ENV": gone, "CONDA_PREFIX": str(good)},
        {"VIRTUAL_ENV": str(bare), "path": f"{good / 'bin'}:/usr/bin:/bin"},
    ):
        assert run_script(project, **active) == (0, "good -m flows.adapt\n")


def test_where_none_has_them_one_line_says_so(tmp_path: Path) -> None:
    bare = python(tmp_path / "bare", "bare", works=False)
    code, said = run_script(tmp_path, path=f"{bare / 'bin'}", VIRTUAL_ENV="/gone")
    assert code == 1 and said.count("\n") == 1
    assert said.startswith("error: no Python here has torch, prefect and mlflow (tried: python)")
    assert "run `make setup`" in said


def test_a_python_without_prefect_is_named_when_a_flow_is_started_by_hand(tmp_path: Path) -> None:
    hide = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'prefect' else find(name)\n"
        "sys.argv[0] = '-m'; import flows"
    )
    done = subprocess.run([sys.executable, "-c", hide], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{sys.executable} has no prefect" in done.stderr and "make setup" in done.stderr


def test_flows_keep_loopback_past_proxies_and_set_unusable_ones_aside() -> None:
    pytest.importorskip("prefect")
    code = (
        "import os, flows; from importlib.util import find_spec; from flows.proxies import all_proxies\n"
        "usable = find_spec('socksio') is not None\n"
        "assert os.environ['no_proxy'] == os.environ['NO_PROXY'] == 'localhost,127.0.0.1,::1'\n"
        "assert ('ALL_PROXY' in os.environ) == usable and os.environ['http_proxy'] == 'http://proxy'\n"
        "import httpx; httpx.Client()\n"
        "with all_proxies(): assert os.environ['ALL_PROXY'] == 'socks5://proxy'\n"
        "assert ('ALL_PROXY' in os.environ) == usable"
    )
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    environment = {k: v for k, v in os.environ.items() if k.lower() not in names}
    environment |= {"http_proxy": "http://proxy", "ALL_PROXY": "socks5://proxy"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
