"""Progress bars that stay quiet when nobody watches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def progress_bar(*, enabled: bool) -> Progress:
    """A rich progress bar; disabled when ``enabled`` is false or the output is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, transient=True)
    bar.disable = not (enabled and bar.console.is_terminal)
    return bar


def track(items: Sequence[T], description: str, *, enabled: bool) -> Iterable[T]:
    """Iterate with a progress bar."""
    with progress_bar(enabled=enabled) as bar:
        yield from bar.track(items, description=description)
