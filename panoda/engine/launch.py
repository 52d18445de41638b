"""Training stages in several processes: started here, one per GPU or share of the CPU's cores.

The process that was asked for the stage keeps the locks, the MLflow run and the record. The workers compute,
and send what is to be logged, the result and errors through a pipe each. A request to stop is passed on to
them; when this process ends, however it does, they end too.
"""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec

import torch

from panoda.engine.accumulation import finer
from panoda.engine.distributed import process_group
from panoda.engine.failures import OutOfMemory
from panoda.engine.preemption import EXIT_CODE, STOPPED, Preempted, sigterm_ends, stop_requests
from panoda.system.background import end_with_parent
from panoda.system.context import MetricLogger, RunContext, check_shares, set_deterministic
from panoda.system.machine import keep_freed_memory

P = ParamSpec("P")
Metrics = dict[str, float]
log = logging.getLogger("panoda")
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""For the others to end by themselves, after the first has failed."""


def on_devices(stage: Callable[P, Metrics]) -> Callable[P, Metrics]:
    """Make a stage function run in ``context.devices`` processes when that is more than one.

    The stage has keywords ``params`` (with ``batch_size`` and ``iterations``) and ``context``. In the workers
    it is called as it is, with a context that says which of how many they are.
    """

    @functools.wraps(stage)
    def run(*args: P.args, **keywords: P.kwargs) -> Metrics:
        context, params = keywords["context"], keywords["params"]
        assert isinstance(context, RunContext)
        alone = context.devices == 1 or context.world > 1
        if alone or not getattr(params, "iterations", 1):
            return stage(*args, **keywords)
        batch, own = getattr(params, "batch_size", 1), getattr(params, "accumulate", 1)
        check_shares(batch, context.devices, accumulate=own)
        while True:
            try:
                return launch(run, keywords, context)
            except OutOfMemory as error:
                parts = max(own, context.micro_batches)
                more = finer(batch // context.devices, parts) if context.on_oom == "accumulate" else None
                if more is None:
                    raise
                log.warning("%s; going on from the last resume point with %d micro-batches", error, more)
                context = replace(context, micro_batches=more)

    return run


def launch(function: Callable[..., Metrics], keywords: Mapping[str, Any], context: RunContext) -> Metrics:
    """Call ``function`` in ``context.devices`` processes; returns what the first one returns.

    Raises:
        Exception: whatever a worker raised first, with the worker's traceback as a note.
        Preempted: asked to stop; everything is saved.
        ChildProcessError: a worker ended without an error, such as after SIGKILL.
    """
    if context.device.type == "cuda":
        torch.cuda.empty_cache()  # the first worker has the same GPU
    told = replace(context, logger=MetricLogger(), fan_out=None, world=context.devices)
    threads = max(1, torch.get_num_threads() // context.devices)
    with tempfile.TemporaryDirectory(prefix="panoda-") as folder:
        workers = _Workers(context)
        try:
            workers.start(threads, Path(folder, "rendezvous"), function, {**keywords, "context": told})
            return workers.result()
        finally:
            workers.end()


class _Workers:
    """The processes of one call, as seen from the one that started them."""

    def __init__(self, context: RunContext) -> None:
        self._count, self._logger = context.devices, context.logger
        self._processes: list[Any] = []
        self._links: list[Connection] = []
        self._errors: list[tuple[float, BaseException]] = []
        self._results: list[Metrics] = []
        self._ended_here: set[int] = set()

    def start(self, threads: int, *job: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        with _clean_start(threads):
            for rank in range(self._count):
                here, there = spawn.Pipe(duplex=False)
                process = spawn.Process(target=_work, args=(rank, there, threads, *job))
                process.start()
                there.close()
                self._processes.append(process)
                self._links.append(here)

    def result(self) -> Metrics:
        until, told = math.inf, False
        with stop_requests() as stop:
            while alive := [process for process in self._processes if process.is_alive()]:
                wait([*self._links, *(process.sentinel for process in alive)], POLL_SECONDS)
                self._listen()
                if stop and not told:
                    told = True
                    for process in alive:
                        process.terminate()
                if until == math.inf and self._failed():
                    until = time.monotonic() + GRACE_SECONDS
                if time.monotonic() > until:
                    self.end()
        self._listen()
        # Now that all have ended: after a process has vanished the others' errors are of broken connections to it.
        vanished = "" if stop else self._vanished()
        if self._errors and not vanished:
            raise min(self._errors, key=lambda pair: pair[0])[1]
        if stop and self._failed():
            raise Preempted(STOPPED)
        if vanished or self._failed():
            how = vanished or "a process ended without a word"
            raise ChildProcessError(f"{how}; the last resume point is kept. Was it killed for its memory?")
        return self._results[0]

    def end(self) -> None:
        for rank, process in enumerate(self._processes):
            if process.is_alive():
                self._ended_here.add(rank)
            process.kill()
            process.join()

    def _failed(self) -> bool:
        return any(process.exitcode for process in self._processes)

    def _vanished(self) -> str:
        """Which process ended by a signal that was not sent here; "" if none did."""
        for rank, process in enumerate(self._processes):
            code = process.exitcode or 0
            if code < 0 and rank not in self._ended_here:
                return f"process {rank} of {self._count} ended by {signal.Signals(-code).name}"
        return ""

    def _listen(self) -> None:
        for link in list(self._links):
            try:
                while link.poll():
                    kind, *values = link.recv()
                    if kind == "result":
                        self._results.extend(values)
                    elif kind == "error":
                        self._errors.append((values[0], values[1]))
                    else:
                        getattr(self._logger, kind)(*values)
            except (EOFError, OSError):  # it ended, perhaps in the middle of a message
                self._links.remove(link)


def _work(
    rank: int,
    link: Connection,
    threads: int,
    rendezvous: Path,
    function: Callable[..., Metrics],
    keywords: Mapping[str, Any],
) -> None:
    """What a worker does. SIGTERM ends it at once until it has joined the others."""
    os.setsid()  # ctrl-C comes to the process that started this one, which tells all
    end_with_parent()  # with it the lock of the GPU goes
    logging.basicConfig(level=logging.WARNING if rank == 0 else logging.ERROR, format="%(message)s")
    torch.set_num_threads(threads)
    keep_freed_memory()
    code = 0
    try:
        context = keywords["context"]
        set_deterministic(context.deterministic)
        device = torch.device("cuda", rank) if context.device.type == "cuda" else context.device
        logger = _PipeLogger(link) if rank == 0 else MetricLogger()
        bar = context.progress and rank == 0
        context = replace(context, rank=rank, device=device, logger=logger, progress=bar)
        with process_group(context, rendezvous), sigterm_ends():
            result = function(**{**keywords, "context": context})
        if rank == 0:
            link.send(("result", {name: float(value) for name, value in result.items()}))
    except BaseException as error:
        code = EXIT_CODE if isinstance(error, Preempted) else 1
        link.send(("error", time.monotonic(), _portable(error, f"in process {rank} of {context.world}")))
    if code:
        sys.stderr.flush()
        # At once: leaving the group in order would wait for the others, who wait for this process.
        os._exit(code)


class _PipeLogger(MetricLogger):
    """Hands every call on to the logger of the process that started this one."""

    def __init__(self, link: Connection) -> None:
        for name in ("log_metrics", "log_image", "log_figure"):
            setattr(self, name, lambda *values, name=name: link.send((name, *values)))


def _portable(error: BaseException, where: str) -> BaseException:
    """The error as it can be pickled, with its traceback as a note."""
    told = "".join(traceback.format_exception(error))
    try:
        pickle.dumps(error)
        type(error)(*error.args)  # what pickle does at the other end: some classes take other arguments
        found = error
    except Exception:
        found = RuntimeError(f"{type(error).__name__}: {error}")
    found.add_note(f"{where}:\n{told}")
    return found


@contextmanager
def _clean_start(threads: int) -> Iterator[None]:
    """Processes started inside do not import the program that started this one, and need no guard in it."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # torch's C++ warns of broken connections, and that DistributedDataParallel looks for unused parameters.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(before)
