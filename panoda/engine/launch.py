"""Starting a training stage in several processes with torchrun, and being their link to the outside.

The process that was asked for the stage stays what it is: it holds the locks, the MLflow run and the record.
The workers (``panoda.engine.worker``) compute. Each is connected to it by a socket:

- the first one sends what is to be logged, and the stage's result;
- whoever fails sends its error, which is raised here as if the stage had run here; the others are ended;
- a request to stop (SIGTERM, ctrl-C) is passed on: they finish the step in hand, save, and all end;
- when this process ends, however it does, the workers see the socket close and end, too.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Listener, wait
from multiprocessing.context import AuthenticationError
from pathlib import Path
from typing import IO, Any, ParamSpec

import torch

from panoda.engine.accumulation import finer
from panoda.engine.failures import OutOfMemory
from panoda.engine.messages import launchable, pack_call, receive, send, unpack_error, unpack_image
from panoda.engine.preemption import Preempted, StopRequest, stop_requests
from panoda.system.context import RunContext, check_shares
from panoda.system.machine import room_for_sockets

P = ParamSpec("P")
Metrics = dict[str, float]
log = logging.getLogger("panoda")
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""For the others to say why they end, after the first has failed."""


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

    return launchable(run)


def launch(function: Callable[..., Metrics], keywords: dict[str, Any], context: RunContext) -> Metrics:
    """Call ``function`` in ``context.devices`` processes; returns what the first one returns.

    Args:
        function: Importable by name and marked by ``launchable``; takes ``context``, which it gets with its
            own rank and device.
        keywords: Its other arguments (``panoda.engine.messages`` says which types).
        context: Of this process; its logger receives what the first process logs.

    Raises:
        Exception: whatever a worker raised first, with the worker's traceback as a note.
        Preempted: asked to stop; everything is saved.
        ChildProcessError: the workers ended without a word, such as after SIGKILL.
    """
    call = pack_call(function, {k: v for k, v in keywords.items() if k != "context"}, context)
    cores = max(1, torch.get_num_threads() // context.devices)
    if context.device.type == "cuda":
        torch.cuda.empty_cache()  # the first worker has the same GPU
    room_for_sockets()
    with tempfile.TemporaryDirectory(prefix="panoda-") as folder:
        address, key = str(Path(folder, "socket")), secrets.token_bytes(32)
        path = Path(folder, "job")
        # The folder is this user's alone, and so is the key.
        job = {"address": address, "key": key.hex(), "threads": cores, "call": call}
        path.write_text(json.dumps(job), encoding="utf-8")
        with (
            Listener(address, "AF_UNIX", backlog=context.devices, authkey=key) as listener,
            _torchrun(context.devices, path, cores) as process,
        ):
            return _Conversation(context, process, listener).result()


@contextmanager
def _torchrun(count: int, job: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    process = subprocess.Popen(
        [*command, "-m", "panoda.engine.worker", str(job)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        start_new_session=True,  # ctrl-C comes to the process that started them, which tells them
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class _Conversation:
    """What is said between this process and the workers."""

    context: RunContext
    process: subprocess.Popen[str]
    listener: Listener
    links: list[Connection] = field(default_factory=list)
    errors: list[tuple[float, BaseException]] = field(default_factory=list)
    results: list[Metrics] = field(default_factory=list)
    last_words: list[str] = field(default_factory=list)
    over: bool = False

    def result(self) -> Metrics:
        threads = [threading.Thread(target=task, daemon=True) for task in (self._welcome, self._overhear)]
        for thread in threads:
            thread.start()
        try:
            with stop_requests() as stop:
                self._listen(stop)
        finally:
            self._say_goodbye(threads[0])
            for link in self.links:
                link.close()
        # torchrun ends the others with SIGTERM when one was killed: that alone is no request to stop.
        asked = bool(stop) or len(self.errors) == self.context.devices
        causes = [pair for pair in self.errors if not _is_consequence(pair[1], asked)]
        if causes:
            raise min(causes, key=lambda pair: pair[0])[1]
        if not self.results:
            stop.obey("what was saved last")
        if self.errors or not self.results:
            tail = "\n".join(self.last_words[-15:])
            raise ChildProcessError(
                f"a process of {self.context.devices} ended without a word; the last resume point is kept. "
                f"Was it killed for its memory? torchrun says:\n{tail}"
            ) from (self.errors[0][1] if self.errors else None)
        return self.results[0]

    def _listen(self, stop: StopRequest) -> None:
        """Until all is said or, after an error, for a moment more."""
        until, told = float("inf"), False
        while time.monotonic() < until:
            links = list(self.links)
            if stop and not told and len(links) == self.context.devices:
                told = self._tell_all("stop")
            ready = wait(links, POLL_SECONDS)
            if not links:
                time.sleep(POLL_SECONDS)
            for link in ready:
                assert isinstance(link, Connection)
                self._hear(link)
            if self.errors:
                until = min(until, time.monotonic() + GRACE_SECONDS)
            if not ready and self.process.poll() is not None:
                return

    def _tell_all(self, word: str) -> bool:
        for link in list(self.links):
            with suppress(OSError):  # it ends by itself
                send(link, word)
        return True

    def _hear(self, link: Connection) -> None:
        try:
            kind, values = receive(link)
        except (EOFError, ConnectionError):
            self.links.remove(link)
            return
        if kind == "result":
            self.results.append(values["metrics"])
        elif kind == "error":
            error = unpack_error(values["error"], f"in process {values['rank']} of {self.context.devices}")
            self.errors.append((values["at"], error))
        else:
            self._log(kind, values)

    def _log(self, kind: str, values: Mapping[str, Any]) -> None:
        logger = self.context.logger
        if kind == "metrics":
            logger.log_metrics(values["metrics"], values["step"])
        elif kind == "image":
            logger.log_image(values["key"], unpack_image(values["image"]), values["step"])
        elif kind == "artifact":
            logger.log_artifact(Path(values["path"]))

    def _welcome(self) -> None:
        while len(self.links) < self.context.devices and not self.over:
            # A worker that ends while it introduces itself is missed elsewhere.
            with suppress(OSError, EOFError, AuthenticationError):
                self.links.append(self.listener.accept())

    def _say_goodbye(self, welcome: threading.Thread) -> None:
        """End the thread that waits for workers: left behind, it would meet those of the next launch."""
        self.over = True
        if welcome.is_alive():
            with suppress(OSError), socket.socket(socket.AF_UNIX) as last:
                last.connect(self.listener.address)
            welcome.join(GRACE_SECONDS)

    def _overhear(self) -> None:
        """Pass on what workers write to stderr, and keep the end of it."""
        stream: IO[str] | None = self.process.stderr
        for line in stream or ():
            self.last_words.append(line.rstrip())
            del self.last_words[:-50]
            if not self.errors and not self.results:
                sys.stderr.write(line)


def _is_consequence(error: BaseException, asked: bool) -> bool:
    """The others' end, seen from inside an exchange, or their being ended; not what was wrong."""
    if isinstance(error, Preempted):
        return not asked
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "connection"))
