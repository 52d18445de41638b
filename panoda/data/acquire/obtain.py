"""From the files of a declaration to an unpacked data set: fetched, verified, unpacked.

What has to be fetched by hand is looked for in the same folder. An archive that was unpacked is not needed
any more: it may be removed, and is not fetched again. Data that was put there in another way is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from panoda.config import AnyDataset, DeclaredDataset
from panoda.data.acquire.fetch import fetch_files, is_remote, set_aside, verify
from panoda.data.acquire.unpack import MARKERS, Unpacked, unpack, unpacked_before
from panoda.data.formats.declaration import (
    Declaration,
    RemoteFile,
    built_in,
    default_folder,
    read_declaration,
)
from panoda.data.formats.declared import declaration_of
from panoda.data.formats.scan import has_images, has_labels
from panoda.system.errors import DataError

SHOWN = 10
"""Entries in one message."""


@dataclass
class Obtained:
    """What is in the folder afterwards.

    Attributes:
        unpacked: Archives, with the entries that were kept out.
        missing: Files to be fetched by hand that are not there.
        wrong: Files fetched by hand that are not what they should be, with the reason.
    """

    folder: Path
    unpacked: list[Unpacked] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every file of the declaration is there and right."""
        return not self.missing and not self.wrong


def by_hand(declaration: Declaration) -> list[RemoteFile]:
    """The files without an address."""
    return [file for file in declaration.files if not is_remote(file)]


def obtain(
    declaration: Declaration,
    folder: Path,
    *,
    progress: bool,
    say: Callable[[str], None] = print,
) -> Obtained:
    """Fetch, verify and unpack what is not there yet.

    Args:
        folder: Its folder; archives lie directly in it.

    Raises:
        DataError: a file could not be fetched, or an archive is damaged; what is there stays.
    """
    result = Obtained(folder)
    todo = []
    for file in declaration.files:
        before = _unpacked(file, folder)
        todo.append(file) if before is None else result.unpacked.append(before)
    if todo and not result.unpacked and is_here(declaration, folder) and not _arrived(todo, folder):
        say(f"{folder}: images of every split are there; nothing to fetch")
        return result
    remote = [file for file in todo if is_remote(file)]
    if remote:
        say(f"fetching {', '.join(file.name for file in remote)} to {folder}")
        fetch_files(remote, folder, progress=progress)
    for file in todo:
        path = folder / file.name
        if not is_remote(file):
            if not path.exists():
                result.missing.append(file.name)
                continue
            if problem := verify(path, file):
                aside = set_aside(path).name
                result.wrong.append(f"{path}: {problem}; it was renamed to {aside}, fetch it again")
                continue
        if file.unpack_to is not None and not file.folder:
            say(f"unpacking {path}")
            result.unpacked.append(unpack(path, _destination(file, folder)))
    return result


def provide(dataset: AnyDataset, *, progress: bool) -> None:
    """Fetch the data of a section of params.yaml when its folder lacks them, as ``panoda data get`` does.

    Only the default folder is created; another one is filled when it exists and is empty, or when ``panoda
    data get`` was at work there. A data set that lies elsewhere is never written to.

    Raises:
        DataError: a file could not be fetched, or has to be fetched by hand; the message says how.
    """
    declaration = _declaration(dataset)
    if declaration is None or not declaration.files:
        return
    folder = Path(dataset.path).expanduser()  # type: ignore[union-attr]
    ours = (folder / MARKERS).is_dir()
    splits = dataset.splits.values() if isinstance(dataset, DeclaredDataset) else None
    if declaration.adapter is None:
        here = is_here(declaration, folder, splits)
    else:  # code knows better which parts a run needs
        here = any(has_images(folder, files) for files in declaration.splits.values())
    if here and not (ours and _to_unpack(declaration, folder)):
        return
    default = folder.absolute() == default_folder(declaration).absolute()
    if not (default or ours or (folder.is_dir() and not any(folder.iterdir()))):
        return
    result = obtain(declaration, folder, progress=progress)
    for archive in result.unpacked:
        for line in explain_kept_out(archive) if not archive.already else ():
            print(f"{archive.archive}: {line}")
    if not result.complete and (declaration.adapter is None or not result.unpacked):
        raise DataError(f"{explain_missing(result)}\n{explain_by_hand(declaration, folder)}")


def is_here(declaration: Declaration, folder: Path, splits: Iterable[str] | None = None) -> bool:
    """Whether every split (or those named) has an image and, if it is labelled, a label in the folder."""
    chosen = [declaration.splits[name] for name in splits or declaration.splits if name in declaration.splits]
    return all(has_images(folder, files) and has_labels(folder, files) for files in chosen)


def _declaration(dataset: AnyDataset) -> Declaration | None:
    if isinstance(dataset, DeclaredDataset):
        return declaration_of(dataset)
    return read_declaration(dataset.kind) if dataset.kind in built_in() else None


def _to_unpack(declaration: Declaration, folder: Path) -> list[RemoteFile]:
    """Archives that lie in the folder and were not unpacked."""
    files = (file for file in declaration.files if file.unpack_to is not None and not file.folder)
    return [file for file in _arrived(files, folder) if _unpacked(file, folder) is None]


def _arrived(files: Iterable[RemoteFile], folder: Path) -> list[RemoteFile]:
    """Files that are in the folder, or on their way."""
    return [f for f in files if (folder / f.name).exists() or (folder / f"{f.name}.part").exists()]


def _unpacked(file: RemoteFile, folder: Path) -> Unpacked | None:
    """What was unpacked of a file before; None when there is something to do."""
    if file.unpack_to is None or file.folder:
        return None
    return unpacked_before(folder / file.name, _destination(file, folder))


def _destination(file: RemoteFile, folder: Path) -> Path:
    assert file.unpack_to is not None
    target = Path(file.unpack_to)
    if target.is_absolute() or ".." in target.parts:
        raise DataError(
            f"{file.name}: unpack_to {file.unpack_to!r} must be a folder within that of the data set"
        )
    return folder / target


def explain_missing(result: Obtained) -> str:
    """What is wrong or missing, one line each."""
    missing = [f"missing in {result.folder}: {_few(result.missing)}"] if result.missing else []
    return "\n".join([*result.wrong, *missing])


def explain_kept_out(archive: Unpacked) -> list[str]:
    """The first entries of an archive that were kept out, by name, and how many in all; empty if none."""
    lines = [f"kept out: {entry.name!r}: {entry.reason}" for entry in archive.bad[:SHOWN]]
    return [*lines, f"{len(archive.bad)} bad entries kept out"] if lines else []


def _few(names: list[str]) -> str:
    """Names in a row; of many, the first and the last."""
    return ", ".join(names) if len(names) < 8 else f"{names[0]} to {names[-1]} ({len(names)} files)"


def explain_by_hand(declaration: Declaration, folder: Path) -> str:
    """Where to apply, which files to fetch and where to put them."""
    lines = [f"{declaration.title} is obtained by hand."]
    if declaration.homepage:
        lines.append(f"Home page: {declaration.homepage}")
    if declaration.manual:
        lines.append(" ".join(declaration.manual.split()))
    names = [file.name for file in by_hand(declaration)]
    if names:
        lines.append(f"Files: {_few(names)}")
        lines.append(
            f"Put them into {folder} as they are; then run the command again: it verifies and unpacks them."
        )
    else:
        lines.append(f"Put the unpacked data into {folder}.")
    return "\n".join(lines)
