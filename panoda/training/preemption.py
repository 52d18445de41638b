"""Stopping on request: SIGTERM (pre-emption) or ctrl-C ends a stage after the step in hand, with all saved.

The exit code is 75 (EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later), so that a scheduler can
tell a run to requeue from a failed one (1) and a wrong request (2).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("panoda")
EXIT_CODE = 75
Handler = Callable[[int, FrameType | None], None]


class Preempted(SystemExit):
    """The process was asked to end. Uncaught, it ends Python with ``EXIT_CODE`` and no traceback."""

    def __init__(self, message: str) -> None:
        """``message`` says what was saved."""
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        """The message, not the code."""
        return self.message


class StopRequest:
    """Whether a signal asked the process to end; ask at every place where the work can be left.

    Attributes:
        name: Of the signal, ``SIGTERM`` or ``SIGINT``; None while there was none.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.name: str | None = None

    def __bool__(self) -> bool:
        """There was a signal."""
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
        """End here if there was a signal.

        Args:
            done: What is done and saved, such as ``step 40 of 320``.

        Raises:
            Preempted: there was one.
        """
        if self:
            raise Preempted(
                f"{self.name}: stopped after {done}; run it again with the same parameters, inputs and code "
                "to go on"
            )


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
    """SIGTERM raises ``Preempted`` where it strikes, so that half-written files are removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Preempted("SIGTERM: stopped; run it again with the same parameters, inputs and code to go on")

    with _handled({signal.SIGTERM: end}):
        yield


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
