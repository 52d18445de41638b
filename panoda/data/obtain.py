"""From the files of a declaration to an unpacked data set: fetched, verified, unpacked.

What has to be fetched by hand is looked for in the same folder. An archive that was unpacked is not needed
any
more: it may be removed, and is not fetched again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from panoda.data.dataset import DataError
from panoda.data.declaration import Declaration, RemoteFile
from panoda.data.fetch import FetchError, Patience, fetch_files, is_remote, set_aside, verify
from panoda.data.unpack import Unpacked, unpack, unpacked_before

DOWNLOADS = Path("data/downloads")


@dataclass
class Obtained:
    """What is in the folder afterwards.

    Attributes:
        folder: The data set's folder.
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


def default_folder(declaration: Declaration) -> Path:
    """Where a data set goes when no folder is named."""
    return DOWNLOADS / declaration.name


def by_hand(declaration: Declaration) -> list[RemoteFile]:
    """The files without an address."""
    return [file for file in declaration.files if not is_remote(file)]


def obtain(
    declaration: Declaration,
    folder: Path,
    *,
    progress: bool,
    patience: Patience | None = None,
    say: Callable[[str], None] = print,
) -> Obtained:
    """Fetch, verify and unpack what is not there yet.

    Args:
        declaration: What the data set consists of.
        folder: Its folder; archives lie directly in it.
        progress: Show progress on a terminal.
        patience: Retries and pauses of downloads.
        say: Told of every step, one line each.

    Raises:
        DataError: a file could not be fetched, or an archive is damaged; what is there stays.
    """
    result = Obtained(folder)
    todo = [file for file in declaration.files if _done(file, folder, result) is None]
    remote = [file for file in todo if is_remote(file)]
    if remote:
        say(f"fetching {', '.join(file.name for file in remote)} to {folder}")
        fetch_files(remote, folder, progress=progress, patience=patience)
    for file in todo:
        path = folder / file.name
        if not is_remote(file) and not _by_hand_is_right(file, path, result):
            continue
        if file.unpack_to is not None and not file.folder:
            say(f"unpacking {path}")
            result.unpacked.append(unpack(path, _destination(file, folder)))
    return result


def _done(file: RemoteFile, folder: Path, result: Obtained) -> Unpacked | None:
    """What was unpacked of a file before; None when there is something to do."""
    if file.unpack_to is None or file.folder:
        return None
    before = unpacked_before(folder / file.name, _destination(file, folder))
    if before is not None:
        result.unpacked.append(before)
    return before


def _by_hand_is_right(file: RemoteFile, path: Path, result: Obtained) -> bool:
    if not path.exists():
        result.missing.append(file.name)
        return False
    problem = verify(path, file)
    if problem is not None:
        result.wrong.append(f"{path}: {problem}; it was renamed to {set_aside(path).name}, fetch it again")
    return problem is None


def _destination(file: RemoteFile, folder: Path) -> Path:
    assert file.unpack_to is not None
    target = Path(file.unpack_to)
    if target.is_absolute() or ".." in target.parts:
        raise DataError(
            f"{file.name}: unpack_to {file.unpack_to!r} must be a folder within that of the data set"
        )
    return folder / target


def explain_by_hand(declaration: Declaration, folder: Path) -> str:
    """Where to apply, which files to fetch and where to put them."""
    lines = [f"{declaration.title} is obtained by hand."]
    if declaration.homepage:
        lines.append(f"Home page: {declaration.homepage}")
    if declaration.manual:
        lines.append(" ".join(declaration.manual.split()))
    names = [file.name for file in by_hand(declaration)]
    if names:
        lines.append(f"Files: {', '.join(names)}")
        lines.append(
            f"Put them into {folder} as they are; then run the command again: it verifies and unpacks them."
        )
    else:
        lines.append(f"Put the unpacked data into {folder}.")
    return "\n".join(lines)


__all__ = ["FetchError", "Obtained", "by_hand", "default_folder", "explain_by_hand", "obtain"]
