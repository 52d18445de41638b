"""Threads beside the work: one writes what was computed, one reads what is needed next, one watches the parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


class BackgroundWriter:
    """Carries out calls in order in a thread of its own, so that computing does not wait for the disk.

    Use it as a context manager. An error is raised by one of the next calls of ``submit``, or on leaving; calls
    after it are dropped. When the body fails, what was not begun is dropped, too.

    Args:
        depth: Calls that may wait; ``submit`` blocks when there are more, so memory stays bounded.
    """

    def __init__(self, depth: int = 2) -> None:
        self._depth, self._failed = depth, False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._calls: deque[Future[None]] = deque()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything is written; raise what went wrong in the thread."""
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            self._wait(0)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have ``call(*arguments)`` carried out after all earlier ones."""
        self._wait(self._depth)
        self._calls.append(self._pool.submit(self._work, call, arguments))

    def _wait(self, depth: int) -> None:
        while len(self._calls) > depth:
            self._calls.popleft().result()

    def _work(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except BaseException:
            self._failed = True
            raise


def read_ahead(items: Iterable[T], depth: int = 2) -> Generator[T]:
    """Iterate while a thread fetches up to ``depth`` items in advance; errors are raised in their place."""
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        fetched = deque(pool.submit(next, source, _END) for _ in range(depth))
        while (item := fetched.popleft().result()) is not _END:
            fetched.append(pool.submit(next, source, _END))
            yield item


def end_with_parent() -> None:
    """From now on this process ends as soon as the one that started it has ended, however it did."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
