"""One of the processes of a training stage: ``torchrun ... -m panoda.engine.worker JOB``.

Started by ``panoda.engine.launch``, which says how the two talk.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panoda.engine.distributed import process_group
from panoda.engine.messages import pack_error, pack_image, receive, send, unpack_call
from panoda.engine.preemption import sigterm_ends
from panoda.system.context import MetricLogger, NullLogger, RunContext, set_deterministic
from panoda.system.machine import keep_freed_memory


def main(path: Path) -> None:
    """Call the stage and send its result, or its error, to whoever started this process."""
    with sigterm_ends():  # from the start: a request to stop may come before there is anything to save
        _work(path)


def _work(path: Path) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    link = Client(job["address"], "AF_UNIX", authkey=bytes.fromhex(job["key"]))
    threading.Thread(target=_follow, args=(link,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING if _rank() == 0 else logging.ERROR, format="%(message)s")
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    try:
        function, keywords, told = unpack_call(job["call"])
        context = _own(told, link, path.parent)
        set_deterministic(context.deterministic)
        with process_group(context.device) as (rank, world):
            result = function(**keywords, context=replace(context, rank=rank, world=world))
        if rank == 0:
            send(link, "result", metrics={name: float(value) for name, value in result.items()})
    except BaseException as error:
        send(link, "error", at=time.monotonic(), rank=_rank(), error=pack_error(error))
        sys.stderr.flush()
        # At once: leaving the group in order would wait for the others, who wait for this process.
        os._exit(1)


def _own(context: RunContext, link: Connection, folder: Path) -> RunContext:
    """The context of this process: its GPU, and a logger and a progress bar in the first alone."""
    device = context.device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    logger: MetricLogger = DistantLogger(link, folder) if _rank() == 0 else NullLogger()
    return replace(context, device=device, logger=logger, progress=context.progress and _rank() == 0)


def _rank() -> int:
    return int(os.environ["RANK"])


class DistantLogger:
    """Sends what is logged to the process that holds the real logger."""

    def __init__(self, link: Connection, folder: Path) -> None:
        """Send through ``link``; figures wait as files in ``folder``, which the other side removes."""
        self._link, self._folder = link, folder

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log many values of one step."""
        send(self._link, "metrics", metrics={k: float(v) for k, v in metrics.items()}, step=int(step))

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log a picture."""
        send(self._link, "image", key=key, image=pack_image(image), step=int(step))

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a figure, drawn here, in the folder ``figures``."""
        place = Path(tempfile.mkdtemp(dir=self._folder), "figures", name)
        place.parent.mkdir(parents=True)
        figure.savefig(place)
        self.log_artifact(place.parent)

    def log_artifact(self, path: Path) -> None:
        """Log a file or folder."""
        send(self._link, "artifact", path=str(Path(path).absolute()))


def _follow(link: Connection) -> None:
    """Stop when told, and end with the process that started this one: with it the lock of the GPU goes."""
    try:
        while receive(link)[0] == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
