"""A pointer to a folder that is used in place: its path and the size and hash of every file used.

The pointer is what a data version control system sees of the user's folder: it changes when a file does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from panoda.data.dataset import DataError
from panoda.files import sha256_file, write_json
from panoda.progress import track

POINTER = "source.json"


@dataclass(frozen=True)
class Pointer:
    """A folder used in place.

    Attributes:
        folder: The folder; relative paths start at the project root.
        splits: Split name -> image paths relative to the folder.
    """

    folder: Path
    splits: dict[str, list[str]]


def existing_folder(path: str) -> Path:
    """The user's folder; DataError when there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{path}: no such folder (looked for {folder.resolve()}); set dataset.path in params.yaml, "
            "absolute or relative to the project root"
        )
    return folder


def write_pointer(
    out: Path, path: str, *, splits: Mapping[str, Sequence[str]], labels: Sequence[str] = (), progress: bool
) -> None:
    """Hash the files and write ``source.json``.

    Args:
        out: Existing folder.
        path: The user's folder as given in params.yaml.
        splits: Split name -> image paths relative to it.
        labels: Label paths relative to it.
        progress: Show a progress bar.
    """
    folder = existing_folder(path)
    names = sorted({*labels, *(name for images in splits.values() for name in images)})
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in track(names, "hashing", enabled=progress)
    }
    value = {"path": _portable(path), "splits": {k: list(v) for k, v in splits.items()}, "files": files}
    write_json(out / POINTER, value)


def read_pointer(raw: Path) -> Pointer:
    """Read ``source.json`` and check that the folder still holds files of the same sizes.

    Raises:
        DataError: no readable pointer, or the folder changed since it was written.
    """
    path = raw / POINTER
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        folder, splits, files = existing_folder(value["path"]), value["splits"], value["files"]
    except DataError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run stage download again") from error
    changed = [name for name, known in files.items() if _size(folder / name) != known["bytes"]]
    if changed:
        missing = sum(_size(folder / name) is None for name in changed)
        raise DataError(
            f"{folder}: {len(changed)} files changed since stage download ({missing} of them missing), "
            f"such as {folder / changed[0]}; restore them, or run stage download again"
        )
    return Pointer(folder=folder, splits=splits)


def _portable(path: str) -> str:
    """A relative path stays relative; an absolute one becomes so inside the project."""
    given = Path(path).expanduser()
    root = Path.cwd()
    return str(given.relative_to(root) if given.is_absolute() and given.is_relative_to(root) else given)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
