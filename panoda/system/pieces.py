"""Work in pieces: what a stage does over a data set, so that no kill, resume or cluster changes a byte.

A piece is a pure function of its work and its number. Its files appear under their final name in one rename,
with a note of what they were made from, so a finished piece is never made again and one that was made twice
(a worker thought dead) does no harm. Whoever makes the pieces, the stage merges them in the order of their
numbers. Pieces have a fixed number of images: how many workers there are decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from panoda.system.files import sha256_file, staged_once, write_json
from panoda.system.progress import progress_bar

if TYPE_CHECKING:
    from panoda.system.context import RunContext

_lock = threading.Lock()
NOTE = "piece.json"
"""Name of the note in the folder of a finished piece."""
SEEN_WITHIN = 60.0
"""Seconds until what another machine renamed shows up on a shared file system at the latest."""


Make = Callable[[int, Path], Mapping[str, str] | None]
"""Makes the piece of a number in an empty folder; may return the SHA-256 of files that it knows."""
_open: list[tuple[Any, Make]] = []
"""The work that is open in this process, if any: what tells it apart, and what makes its pieces."""


class Work(Protocol):
    """What is to be done, as plain picklable values: paths, parameters, digests."""

    @property
    def name(self) -> str:
        """For messages, and the folder of the pieces."""

    def identity(self) -> Mapping[str, Any]:
        """JSON values that decide every byte of the pieces, such as digests of the inputs."""

    def __len__(self) -> int:
        """Number of pieces."""

    def open(self, compute: Any) -> Make:
        """Open inputs and model once."""


class Runner(Protocol):
    """Makes pieces somewhere; returns when all are made, and raises when one cannot be made."""

    def __call__(self, work: Work, folder: Path, numbers: Sequence[int], done: Callable[[], None]) -> None:
        """Make the pieces ``numbers`` below ``folder``; call ``done`` after each."""


@contextmanager
def work_folder(compute: RunContext, out: Path) -> Iterator[Path]:
    """Where pieces wait to be merged: the stage's resume folder, or a temporary one beside ``out``."""
    if compute.state_dir is not None:
        yield compute.state_dir / "pieces"
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        yield Path(scratch)


def finish(work: Work, place: Path, compute: RunContext) -> list[Path]:
    """Make every piece that is not finished.

    Returns:
        The folders of all pieces, in order.

    Raises:
        OSError: a piece was made elsewhere and is not seen here.
    """
    folder, made_from = (place / work.name).absolute(), recipe(work)
    folder.mkdir(parents=True, exist_ok=True)
    folders = [piece_folder(folder, number) for number in range(len(work))]
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter free
        kept = list(pool.map(lambda piece: _kept(piece, made_from), folders))
    missing = [number for number, found in enumerate(kept) if not found]
    with progress_bar(enabled=compute.progress) as bar:
        task = bar.add_task(work.name, total=len(work), completed=len(work) - len(missing))
        if missing and compute.fan_out is not None:
            compute.fan_out(work, folder, missing, lambda: bar.advance(task))
        else:
            try:
                for number in missing:
                    make_piece(work, compute, folder, number)
                    bar.advance(task)
            finally:
                _open.clear()
    _see(work, [folders[number] for number in missing])
    return folders


def recipe(work: Work) -> str:
    """SHA-256 over all that decides the bytes of the pieces."""
    value = {"work": work.name, "pieces": len(work), **work.identity()}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def piece_folder(folder: Path, number: int) -> Path:
    """Folder of a piece below the folder of its work."""
    return folder / f"{number:06d}"


def seconds_of(piece: Path) -> float:
    """How long it took to make a finished piece."""
    return float(json.loads((piece / NOTE).read_text(encoding="utf-8"))["seconds"])


def spans(length: int, size: int) -> list[range]:
    """``range(length)`` in ranges of ``size``, the last one shorter."""
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def make_piece(work: Work, compute: Any, folder: Path, number: int) -> None:
    """Make one piece below ``folder``; a worker process keeps the last work open for the next piece.

    Pieces of one process are made one after the other, whichever threads ask for them.
    """
    with _lock:
        mark = (recipe(work), compute)
        if not _open or _open[0][0] != mark:
            _open.clear()  # before models and files of the next work are opened
            _open.append((mark, work.open(compute)))
        with staged_once(piece_folder(folder, number)) as aside:
            start = time.perf_counter()
            known = _open[0][1](number, aside) or {}
            files = {path.name: known.get(path.name) or sha256_file(path) for path in sorted(aside.iterdir())}
            note = {"recipe": recipe(work), "files": files, "seconds": time.perf_counter() - start}
            write_json(aside / NOTE, note)


def _kept(piece: Path, made_from: str) -> bool:
    """Whether a piece is finished, whole and of this recipe; one that is not is removed."""
    if not piece.exists():
        return False
    try:
        note = json.loads((piece / NOTE).read_text(encoding="utf-8"))
        files = note["files"]
        whole = note["recipe"] == made_from and all(sha256_file(piece / n) == d for n, d in files.items())
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        shutil.rmtree(piece)
    return whole


def _see(work: Work, made: Sequence[Path]) -> None:
    end = time.monotonic() + SEEN_WITHIN
    for piece in made:
        while not (piece / NOTE).is_file():
            if time.monotonic() > end:
                raise OSError(
                    f"{piece}: piece of {work.name} was made but is not here; the project must be on a "
                    "file system that this machine and all workers share, under the same path"
                )
            time.sleep(0.2)
