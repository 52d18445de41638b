from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from import_closure import import_closure

from panoda.config import load_params
from panoda.pipeline.runs import (
    clean_state,
    code_digest,
    digest,
    fingerprint,
    new_run_folder,
    pipeline_record,
    provenance,
    read_record,
    resume_state,
    run_of_input,
)
from panoda.pipeline.table import STAGES, flatten, get_stage
from panoda.system.locks import file_lock, is_locked

ROOT = Path(__file__).resolve().parents[1]


def test_digest_of_a_file_is_its_md5(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == hashlib.md5(b"abc").hexdigest()


def test_digest_of_a_folder_by_hand_and_without_caches(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"1")
    (tmp_path / "a.txt").write_bytes(b"2")
    listing = [
        {"md5": hashlib.md5(b"2").hexdigest(), "relpath": "a.txt"},
        {"md5": hashlib.md5(b"1").hexdigest(), "relpath": "b/x"},
    ]
    expected = hashlib.md5(json.dumps(listing).encode()).hexdigest() + ".dir"
    assert digest(tmp_path) == expected
    assert len(expected) == 36  # what MLflow allows
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "y.pyc").write_bytes(b"3")
    assert digest(tmp_path) == expected
    (tmp_path / "b" / "x").write_bytes(b"4")
    assert digest(tmp_path) != expected


def test_digest_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the stage that makes it"):
        digest(tmp_path / "missing")


def package(tmp_path: Path, files: dict[str, str]) -> Path:
    top = tmp_path / "pack"
    for name, text in {"__init__.py": "", **files}.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        init = path.parent / "__init__.py"
        if not init.exists():
            init.write_text("")
    return top


def test_closure_follows_every_kind_of_import(tmp_path: Path) -> None:
    top = package(
        tmp_path,
        {
            "start.py": "import pack.a\nfrom pack.sub import b\nfrom . import c\ndef f():\n import pack.d",
            "a.py": "",
            "sub/b.py": "from .inner import e",
            "sub/inner.py": "e = 1",
            "c.py": "NAMES = {'x': 'pack.by_name', 'y': 'not a module'}",
            "d.py": "",
            "by_name.py": "",
            "unused.py": "",
        },
    )
    names = {p.relative_to(top).as_posix() for p in import_closure("pack.start", package=top)}
    inits = {"__init__.py", "sub/__init__.py"}
    assert names == inits | {"start.py", "a.py", "sub/b.py", "sub/inner.py", "c.py", "d.py"}
    more = {p.relative_to(top).as_posix() for p in import_closure("pack.start", registries=True, package=top)}
    assert more == names | {"by_name.py"}


def test_closure_of_a_missing_module() -> None:
    with pytest.raises(ValueError, match="no such module"):
        import_closure("panoda.stages.nothing")


def test_code_digest_covers_names_and_bytes_of_files_and_folders(tmp_path: Path) -> None:
    for name in ("room/a.py", "room/b.py", "c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    paths = [Path("room"), Path("c.py")]
    first = code_digest(paths, root=tmp_path)
    assert first == code_digest([*paths[::-1], Path("c.py")], root=tmp_path)
    (tmp_path / "room/__pycache__").mkdir()
    (tmp_path / "room/__pycache__/a.pyc").write_text("")
    assert first == code_digest(paths, root=tmp_path)
    (tmp_path / "room/b.py").rename(tmp_path / "room/d.py")
    second = code_digest(paths, root=tmp_path)
    (tmp_path / "c.py").write_text("x = 2\n")
    assert len({first, second, code_digest(paths, root=tmp_path)}) == 3
    with pytest.raises(ValueError, match="nowhere: no such file or folder, but the code of a stage"):
        code_digest([Path("nowhere")], root=tmp_path)


def test_fingerprint_changes_with_each_part() -> None:
    base = fingerprint("pretrain", {"seed": 0, "a": 1}, {"x": "1"}, "c")
    assert base == fingerprint("pretrain", {"a": 1, "seed": 0}, {"x": "1"}, "c")
    others = {
        fingerprint("warmup", {"seed": 0, "a": 1}, {"x": "1"}, "c"),
        fingerprint("pretrain", {"seed": 1, "a": 1}, {"x": "1"}, "c"),
        fingerprint("pretrain", {"seed": 0, "a": 1}, {"x": "2"}, "c"),
        fingerprint("pretrain", {"seed": 0, "a": 1}, {"x": "1"}, "d"),
    }
    assert len(others | {base}) == 5


def test_resume_state_survives_failure_and_goes_with_success(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), resume_state("pretrain", "1" * 16, root=tmp_path) as folder:
        (folder / "resume.pt").write_text("step 3")
        raise RuntimeError("killed")
    with resume_state("pretrain", "1" * 16, root=tmp_path) as folder:
        assert (folder / "resume.pt").read_text() == "step 3"
    assert not folder.exists()


def test_states_of_other_fingerprints_wait_a_week_and_running_ones_for_ever(tmp_path: Path) -> None:
    state = tmp_path / ".panoda" / "state"

    def killed(stage: str, mark: str, days: float = 0.0) -> None:
        with pytest.raises(RuntimeError), resume_state(stage, mark * 16, root=tmp_path) as folder:
            (folder / "pieces").mkdir()
            raise RuntimeError
        then = time.time() - days * 86400
        for path in (folder / "pieces", folder):
            os.utime(path, (then, then))

    killed("pretrain", "1", days=8)
    killed("pretrain-x", "1", days=8)
    killed("pretrain", "2", days=6)
    # A job that was pre-empted goes on although another one of its stage began meanwhile.
    killed("pretrain", "3")
    assert {p.name[:12] for p in state.iterdir()} == {"pretrain-222", "pretrain-333", "pretrain-x-1"}
    with resume_state("warmup", "1" * 16, root=tmp_path) as running:
        os.utime(running, (0, 0))
        with resume_state("warmup", "2" * 16, root=tmp_path):
            assert running.is_dir()
        assert len(clean_state(tmp_path)) == 3
        assert running.is_dir()


def test_second_holder_waits_and_says_so(tmp_path: Path) -> None:
    lock, said, order = tmp_path / "gpu.lock", [], []
    code = (
        "import sys, time; from pathlib import Path; from panoda.system.locks import file_lock\n"
        f"with file_lock(Path({str(lock)!r}), what='GPU'):\n print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        assert is_locked(lock)

        def wait() -> None:
            with file_lock(lock, what="GPU 0", say=said.append):
                order.append("mine")

        thread = threading.Thread(target=wait)
        thread.start()
        for _ in range(200):
            if said:
                break
            time.sleep(0.02)
        assert said == [f"GPU 0 is in use by process {other.pid}; waiting until it is free"]
        assert order == []
        other.kill()  # a killed holder leaves nothing behind
        thread.join(timeout=20)
    assert order == ["mine"]
    assert not is_locked(lock)


def test_run_folders_are_new_and_named_by_stage(tmp_path: Path) -> None:
    one, two = new_run_folder("adapt", tmp_path), new_run_folder("adapt", tmp_path)
    assert one != two
    assert one.parent == tmp_path / "runs" and one.name.startswith("adapt-")


def test_read_record_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_record(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_record(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="code, inputs, label, params, stage, status missing"):
        read_record(tmp_path / "run.json")


def test_parent_run_of_an_input(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "pretrain-1"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"mlflow_run_id": "abc"}')
    record = pipeline_record("warmup", tmp_path)
    record.parent.mkdir(parents=True)
    record.write_text('{"mlflow_run_id": "def"}')
    assert run_of_input(run / "model.safetensors", tmp_path) == "abc"
    assert run_of_input(Path("outputs/warmup/model.safetensors"), tmp_path) == "def"
    assert run_of_input(Path("outputs/adapt/model.safetensors"), tmp_path) is None


def test_provenance_of_a_repository_ignores_dvc_lock(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ["-c", "user.name=n", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "dvc.lock").write_text("a")
    (tmp_path / "code").write_text("a")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "dvc.lock").write_text("b")
    found = provenance(tmp_path)
    assert len(found["git_commit"]) == 40 and found["git_dirty"] is False
    assert found["dvc_lock"] == hashlib.sha256(b"b").hexdigest()
    (tmp_path / "code").write_text("b")
    assert provenance(tmp_path)["git_dirty"] is True


def test_stage_params_are_its_sections_alone() -> None:
    params = load_params(ROOT / "params.yaml")
    assert set(STAGES["pretrain"].params(params)) == {"sources", "model", "pretrain", "seed"}
    own = STAGES["download"].params(params, "source")
    assert own == {"data": {"source": {"dataset": params.data.source.dataset.model_dump(mode="json")}}}
    assert flatten({"a": {"b": 1, "c": [1]}, "d": {}}) == {"a.b": 1, "a.c": [1], "d": {}}


def test_stage_roles_and_names() -> None:
    assert STAGES["download"].label("source") == "download@source"
    assert STAGES["download"].folder_name("source") == "download-source"
    with pytest.raises(ValueError, match="needs --role"):
        STAGES["download"].label()
    with pytest.raises(ValueError, match="source, target; got 'sorce'"):
        STAGES["download"].params(load_params(ROOT / "params.yaml"), "sorce")
    assert STAGES["preprocess"].out_path("target") == Path("data/prepared/target")
    assert STAGES["preprocess"].out_path("synpass") == Path("data/prepared/more_sources/synpass")
    with pytest.raises(ValueError, match="has no roles"):
        STAGES["adapt"].label("source")
    with pytest.raises(ValueError, match="unknown stage 'x'"):
        get_stage("x")


def test_no_commit_is_known_of_a_project_within_a_foreign_repository(tmp_path: Path) -> None:
    name = ("-c", "user.name=n", "-c", "user.email=a@example.org")
    project = tmp_path / "downloads" / "panoda"
    project.mkdir(parents=True)
    (project / "dvc.yaml").write_text("")
    for command in (("init", "--quiet"), (*name, "commit", "--quiet", "--allow-empty", "-m", "letters")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert provenance(project) == {"git_commit": None, "git_dirty": None, "dvc_lock": None}
    subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
    assert len(provenance(project)["git_commit"]) == 40 and provenance(project)["git_dirty"] is True
