"""What a stage's result depends on, and where runs and resume state are kept.

A fingerprint covers parameters, inputs and code. Digests are DVC's own (MD5 of a file; of a folder, the MD5
of its listing, with the suffix ``.dir``), so the number in run.json, in MLflow and in dvc.lock is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from panoda.system.files import sha256_file
from panoda.system.locks import file_lock, is_locked

PACKAGE = Path(__file__).resolve().parents[1]
STATE = Path(".panoda/state")
RUNS = Path("runs")
RECORD = "run.json"
STALE_DAYS = 7.0
"""So long a killed or pre-empted run with other parameters may take to be started again."""
IGNORED_NAMES = frozenset({"__pycache__", ".DS_Store", ".gitkeep"})


# --- digests ---------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """DVC's digest of a file (32 hex digits) or a folder (the same with ``.dir``).

    Raises:
        ValueError: nothing there.
    """
    if path.is_dir():
        files = list(_files_below(path))
        with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter free
            entries = [
                {"md5": md5, "relpath": file.relative_to(path).as_posix()}
                for md5, file in zip(pool.map(_md5, files), files, strict=True)
            ]
        entries.sort(key=lambda entry: tuple(entry["relpath"].split("/")))
        return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"
    if path.is_file():
        return _md5(path)
    raise ValueError(
        f"{path}: no such file or folder; run the stage that makes it first, or name another input"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        # The same patterns as .dvcignore.
        folders[:] = sorted(set(folders) - IGNORED_NAMES)
        kept = (name for name in set(names) - IGNORED_NAMES if not name.endswith((".pyc", ".tmp")))
        yield from (Path(parent, name) for name in sorted(kept))


# --- code ------------------------------------------------------------------------------------------


def code_digest(paths: Iterable[Path], *, root: Path = PACKAGE.parent) -> str:
    """SHA-256 over names and bytes of the files in ``paths``, files or folders below ``root``.

    Raises:
        ValueError: nothing there.
    """
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        whole = root / path
        if not whole.exists():
            raise ValueError(f"{whole}: no such file or folder, but the code of a stage; is a name misspelt?")
        for file in [whole] if whole.is_file() else _files_below(whole):
            total.update(f"{file.relative_to(root).as_posix()}\0{sha256_file(file)}\n".encode())
    return total.hexdigest()


def fingerprint(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str], code: str) -> str:
    """16 hex digits that name everything a stage's result depends on."""
    value = {"stage": stage, "params": params, "inputs": inputs, "code": code}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# --- resume state ------------------------------------------------------------------------------------


@contextmanager
def resume_state(
    name: str, mark: str, *, root: Path = Path(), say: Callable[[str], None] = print
) -> Iterator[Path]:
    """The resume folder of a stage; kept when the body fails or is killed, removed when it succeeds.

    Folders of the same stage with other fingerprints belong to other parameters, inputs or code, perhaps of a
    job that waits to go on: they are removed ``STALE_DAYS`` after they were last written to, unless a running
    process holds them.
    """
    base = root / STATE
    folder = base / f"{name}-{mark}"
    for other in base.glob(f"{name}-*"):
        stale = other.is_dir() and other != folder and len(other.name) == len(folder.name)
        if stale and _days_old(other) > STALE_DAYS and not is_locked(_lock_of(other)):
            shutil.rmtree(other, ignore_errors=True)
    with file_lock(_lock_of(folder), what=f"the same run of {name}", say=say):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _days_old(folder: Path) -> float:
    """Days since anything in a folder was written."""
    times = []
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):  # its process goes on just now
            times.append(path.stat().st_mtime)
    return (time.time() - max(times, default=time.time())) / 86400


def _lock_of(folder: Path) -> Path:
    return folder.parent.parent / "locks" / f"{folder.name}.lock"


def clean_state(root: Path = Path()) -> list[str]:
    """Remove the resume state of every stage that is not running; returns the names removed."""
    removed = []
    for folder in sorted((root / STATE).glob("*")):
        if folder.is_dir() and not is_locked(_lock_of(folder)):
            shutil.rmtree(folder)
            _lock_of(folder).unlink(missing_ok=True)
            removed.append(folder.name)
    return removed


# --- run folders and provenance ------------------------------------------------------------------------


def new_run_folder(name: str, root: Path = Path()) -> Path:
    """A name for a run folder that does not exist yet: ``runs/<stage>-<UTC time>-<id>``."""
    return root / RUNS / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def pipeline_record(label: str, root: Path = Path()) -> Path:
    """Where the record of the pipeline's last run of a stage lies: beside, never inside, the DVC output."""
    return root / ".panoda" / "pipeline" / f"{label}.json"


def read_record(path: Path) -> dict[str, Any]:
    """Read a run.json; ValueError when it is missing or not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such file; name the folder of a run made by python -m flows.<stage>"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); was the run cut off? make it again") from error
    missing = {"stage", "label", "params", "inputs", "code", "status"} - set(record)
    if missing:
        raise ValueError(f"{path}: no run record, {', '.join(sorted(missing))} missing")
    return dict(record)


def run_of_input(path: Path, root: Path = Path()) -> str | None:
    """MLflow run that made an input, or None: from the run folder it lies in, or the pipeline's record."""
    for folder in (path, path.parent):
        candidates: Sequence[Path] = (folder / RECORD, pipeline_record(folder.name, root))
        for record in candidates:
            if record.is_file():
                return json.loads(record.read_text(encoding="utf-8")).get("mlflow_run_id")
    return None


def provenance(root: Path = Path()) -> dict[str, Any]:
    """Git commit, whether tracked files differ from it, and the SHA-256 of dvc.lock.

    Of a project that is in no repository, or lies untracked within another's, no commit is known.
    """
    lock = root / "dvc.lock"
    tracked = bool(_git(root, "ls-files", "--", "."))
    # dvc.lock is the pipeline's own product: a run that updates it does not make the code dirty.
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return {
        "git_commit": _git(root, "rev-parse", "HEAD") if tracked else None,
        "git_dirty": bool(changes) if tracked and changes is not None else None,
        "dvc_lock": sha256_file(lock) if lock.is_file() else None,
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
