"""A pointer to a folder that is used in place: its path and the size and hash of every file used.

The pointer is what a data version control system sees of the user's folder: it changes when a file does. The
files are a table on disk, written and read line by line, so that memory does not depend on their number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from panoda.system.errors import DataError
from panoda.system.files import sha256_file, write_json
from panoda.system.progress import track

POINTER = "source.json"
FILES = "files.csv"


def existing_folder(path: str) -> Path:
    """The user's folder; DataError when there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{path}: no such folder (looked for {folder.resolve()}); set dataset.path in params.yaml, "
            "absolute, relative to the project root, or from ~ on"
        )
    return folder


def write_pointer(out: Path, path: str, files: Sequence[str], *, progress: bool) -> None:
    """Hash ``files`` (paths relative to the user's folder ``path``) and write ``source.json`` and ``files.csv``."""
    folder = existing_folder(path)
    with (out / FILES).open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("path", "bytes", "sha256"))
        for name in track(files, "hashing", enabled=progress):
            table.writerow((name, (folder / name).stat().st_size, sha256_file(folder / name)))
    write_json(out / POINTER, {"path": _portable(path)})


def read_pointer(raw: Path) -> Path:
    """The folder that ``source.json`` points to, after a check that it still holds files of the same sizes.

    Raises:
        DataError: no readable pointer, or the folder changed since it was written.
    """
    path = raw / POINTER
    changed, missing, example = 0, 0, ""
    try:
        folder = existing_folder(json.loads(path.read_text(encoding="utf-8"))["path"])
        with (raw / FILES).open(encoding="utf-8", newline="") as stream:
            for known in csv.DictReader(stream):
                file = folder / known["path"]
                size = file.stat().st_size if file.is_file() else None
                if size != int(known["bytes"]):
                    changed, missing = changed + 1, missing + (size is None)
                    example = example or known["path"]
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run stage download again") from error
    if changed:
        raise DataError(
            f"{folder}: {changed} files changed since stage download ({missing} of them missing), "
            f"such as {folder / example}; restore them, or run stage download again"
        )
    return folder


def _portable(path: str) -> str:
    """A relative path stays relative; an absolute one becomes so inside the project."""
    given = Path(path).expanduser()
    root = Path.cwd()
    return str(given.relative_to(root) if given.is_absolute() and given.is_relative_to(root) else given)
