"""Threads beside the work: one writes what was computed, one reads what is needed next, one watches the parent."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


class BackgroundWriter:
    """Carries out calls in order in a thread of its own, so that computing does not wait for the disk.

    Use it as a context manager. The first error is raised by the next ``submit``, or on leaving; calls after
    it are dropped. When the body fails, what was not begun is dropped, too.

    Args:
        depth: Calls that may wait; ``submit`` blocks when there are more, so memory stays bounded.
    """

    def __init__(self, depth: int = 2) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything is written; raise what went wrong in the thread."""
        if error is not None and self._error is None:
            self._error = error
        self._queue.put(_END)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have ``call(*arguments)`` carried out after all earlier ones."""
        if self._error is not None:
            raise self._error
        self._queue.put((call, arguments))

    def _work(self) -> None:
        while (item := self._queue.get()) is not _END:
            if self._error is not None:
                continue
            call, arguments = item
            try:
                call(*arguments)
            except BaseException as error:  # the thread that computes raises it
                self._error = error


def read_ahead(items: Iterable[T], depth: int = 2) -> Generator[T]:
    """Iterate while a thread fetches up to ``depth`` items in advance; errors are raised in their place."""
    fetched: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(value: Any) -> bool:
        while not stop.is_set():
            try:
                fetched.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fetch(source: Iterator[T]) -> None:
        try:
            for item in source:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    thread = threading.Thread(target=fetch, args=(iter(items),), name="reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = fetched.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def end_with_parent() -> None:
    """From now on this process ends as soon as the one that started it has ended, however it did."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
