"""Files: reading text that a person wrote; writing aside, then replacing, so that nothing is half-written."""

from __future__ import annotations

import codecs
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_ADVICE = {
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOTDIR: "a file lies where a folder is needed; choose another place, or move it away",
    errno.EEXIST: "a file lies where a folder is needed; choose another place, or move it away",
    errno.EISDIR: "a folder lies where a file is needed; name a file",
    errno.ENOENT: "check the path",
}


def explained_error(error: BaseException) -> str:
    """An error for the user: what the system reports names the file and says what to do."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if not error.filename:
        return error.strerror
    text = f"{error.filename}: {error.strerror.lower()}"
    return f"{text}; {_ADVICE[error.errno]}" if error.errno in _ADVICE else text


def expand_user(text: str) -> str:
    """A path or ``--option=path`` with the home folder in place of ``~``."""
    name, equals, path = text.rpartition("=")
    return f"{name}{equals}{os.path.expanduser(path)}"


def read_text(path: Path) -> str:
    """A text that a person wrote: UTF-8, or UTF-16 with its byte order mark. Lines end as in Unix.

    Raises:
        ValueError: another encoding, or no text; the message names the line.
        OSError: missing or unreadable.
    """
    data = path.read_bytes()
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}: line {line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path}: zero bytes, so no text in UTF-8; save the file as UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: no text (``read_text``), malformed, or a key stands twice; the message names the place.
        OSError: missing or unreadable.
    """
    try:
        return yaml.load(read_text(path), Loader=_Loader)  # a SafeLoader
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not valid YAML ({str(error).removeprefix(f'{path}: ')})") from error


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice (PyYAML itself takes the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} stands here twice; remove one", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


@contextmanager
def explain_disk_full(path: Path) -> Iterator[None]:
    """Turn "no space left on device" into an OSError that says what was written and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"disk full while writing {path}; no half-written file was kept: free some space and run again",
        ) from error


def _aside(path: Path, kind: str) -> Path:
    """A hidden sibling of ``path`` for this process; what killed processes of this machine left is removed.

    A folder that a process killed between the two renames of ``staged_directory`` had set aside comes back.
    """
    host = socket.gethostname().replace(".", "-")
    name, own = glob.escape(path.name), f"{glob.escape(host)}.*"
    # The second pattern: something was staged in a folder that was staged itself.
    for left in (*path.parent.glob(f".{name}.{own}"), *path.parent.glob(f"..{name}.{own}.{own}")):
        number, suffix = left.name.split(".")[-2:]
        if not number.isdigit() or suffix not in ("tmp", "old") or _alive(int(number)):
            continue
        if suffix == "old" and not path.exists() and not left.name.startswith(".."):
            os.replace(left, path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{host}.{os.getpid()}.{kind}")


def _alive(pid: int) -> bool:
    """Whether a process of this machine has that number; this one counts as another's remains."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def one_name(path: Path) -> Path:
    """A path as it is kept: absolute and without ``..``, so that a file has one name in calls from any folder.

    Links keep their names, but for those before a ``..``, which leads above what they point to.
    """
    found = path.expanduser().absolute()
    return found.parent.resolve() / found.name if ".." in found.parts else found


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it replaces ``path``, on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path, "tmp")
    try:
        with explain_disk_full(path):
            yield aside
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def check_replaceable(
    out: Path, *, made: Sequence[str], inputs: Sequence[Path] = (), only: Sequence[str] = ()
) -> None:
    """Refuse a result folder whose replacement would delete something else.

    Args:
        out: Result folder that is to be replaced.
        made: Files of which one lies in every earlier result.
        inputs: Files and folders that are read; ``out`` may be neither of them, nor lie in them, nor hold them.
        only: All that may lie in an earlier result, besides hidden files; none = anything may.

    Raises:
        ValueError: names the folder, what is in its way, and what to do.
    """
    found = out.expanduser().resolve()
    for given in inputs:
        read = given.expanduser().resolve()
        if found in (read, *read.parents) or (read.is_dir() and read in found.parents):
            raise ValueError(
                f"--out {out}: would replace or mix with {given}, which is read; choose another folder"
            )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; choose a new folder")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).is_file() for name in made):
        raise ValueError(
            f"--out {out}: holds other files, which the result would replace; choose an empty or new folder"
        )
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in inside if name not in only and not name.startswith(".")]
    if only and others:
        raise ValueError(
            f"--out {out}: holds {', '.join(others)}, which would be lost; move it away, or choose a new folder"
        )


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder; on success it replaces ``path``, on error ``path`` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = _aside(path, "tmp"), _aside(path, "old")
    aside.mkdir()
    try:
        with explain_disk_full(path):
            yield aside
            if path.exists():
                os.replace(path, old)
            os.replace(aside, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged_once(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes ``path``, unless another process put one there first.

    For results that are the same whoever makes them: of several, the first stays and the others are dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path, "tmp")
    aside.mkdir()
    try:
        with explain_disk_full(path):
            yield aside
            try:
                os.rename(aside, path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with staged_file(path) as aside:
        aside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def take_over(file: Path, folder: Path) -> None:
    """Put a finished file into a folder: a second name for the same bytes, or a copy on another disk."""
    try:
        os.link(file, folder / file.name)
    except OSError as error:
        if error.errno == errno.EXDEV:
            shutil.copyfile(file, folder / file.name)
        else:  # a file system without hard links
            os.replace(file, folder / file.name)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
