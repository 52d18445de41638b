"""Stopping on request: SIGTERM (pre-emption) or ctrl-C ends a stage after the step in hand, with all saved.

The exit code is 75 (EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later), so that a scheduler can
tell a run to requeue from a failed one (1) and a wrong request (2).
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger("panoda")
EXIT_CODE = 75
STOPPED = "SIGTERM: stopped; run it again with the same parameters, inputs and code to go on"
CLEAN_UP_SECONDS = 30.0
"""So long a further SIGTERM changes nothing."""
Handler = Callable[[int, FrameType | None], None]


class Preempted(SystemExit):
    """The process was asked to end. Uncaught, it ends Python with ``EXIT_CODE`` and no traceback."""

    def __init__(self, message: str) -> None:
        """``message`` says what was saved."""
        super().__init__(EXIT_CODE)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would take the code for the message."""
        return type(self), (self.message,), self.__dict__

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Whether a signal asked the process to end; ask at every place where the work can be left.

    Attributes:
        name: Of the signal, ``SIGTERM`` or ``SIGINT``; None while there was none.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Take note of a signal; ctrl-C a second time does not wait.

        Schedulers repeat SIGTERM, to a process and to its group, and follow with SIGKILL: it is noted once.
        """
        if self.name is None:
            self.name = signal.Signals(number).name
            log.warning("%s: ending after this step, with everything saved", self.name)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def obey(self, done: str) -> None:
        """Raise ``Preempted``: there was a signal, to this process or to another that trains the same model.

        ``done`` says what is done and saved, such as ``step 40 of 320``.
        """
        _Ending.since = time.monotonic()
        _Ending.message = (
            f"{self.name or 'SIGTERM'}: stopped after {done}; run it again with the same parameters, inputs "
            "and code to go on"
        )
        raise Preempted(_Ending.message)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and ctrl-C instead of dying of them, until the block ends.

    Other handlers (Prefect's, Python's) come back afterwards. Outside the main thread nothing is noted:
    Python delivers signals there alone.
    """
    request = StopRequest()
    with _handled({signal.SIGTERM: request.receive, signal.SIGINT: request.receive}):
        yield request


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """SIGTERM raises ``Preempted`` where it strikes, so that half-written files are removed.

    While that goes on a further SIGTERM changes nothing.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if not _Ending.goes_on():
            raise Preempted(_Ending.message)

    with _handled({signal.SIGTERM: end}):
        _Ending.depth += 1
        if _Ending.depth == 1:
            _Ending.since, _Ending.message = None, STOPPED
        try:
            yield
        finally:
            _Ending.depth -= 1


def no_more_sigterm() -> None:
    """From now on SIGTERM is ignored, until the end of ``sigterm_ends`` where this is called in it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Ending:
    """When a ``Preempted`` was raised; what follows is its clean-up, also where no exception is in sight.

    Attributes:
        since: On the monotonic clock; None before.
        message: What it said.
        depth: Blocks of ``sigterm_ends`` that are open.
    """

    since: float | None = None
    message = STOPPED
    depth = 0

    @classmethod
    def goes_on(cls) -> bool:
        """Whether the clean-up still goes on; it counts as begun otherwise."""
        raised = sys.exc_info()[1]
        # Prefect makes another end of a SIGTERM, and sends it again to hear what it should be.
        other = raised is not None and not isinstance(raised, Exception | Preempted)
        if cls.since is not None and time.monotonic() - cls.since < CLEAN_UP_SECONDS and not other:
            return True
        cls.since = time.monotonic()
        return False


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            # None: a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
