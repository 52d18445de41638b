"""One of the processes of a training stage: ``torchrun ... -m panoda.training.worker JOB``.

Started by ``panoda.training.launch``, which says how the two talk.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panoda.training.context import MetricLogger, NullLogger, RunContext
from panoda.training.distributed import process_group
from panoda.training.launch import WorkerJob
from panoda.training.preemption import sigterm_ends


def main(path: Path) -> None:
    """Call the stage and send its result, or its error, to whoever started this process."""
    job: WorkerJob = pickle.loads(path.read_bytes())
    link = Client(job.address, "AF_UNIX", authkey=job.key)
    threading.Thread(target=_follow, args=(link,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING if _rank() == 0 else logging.ERROR, format="%(message)s")
    torch.set_num_threads(job.threads)
    try:
        function, keywords = pickle.loads(job.call)
        context = _own(keywords["context"], link)
        with sigterm_ends(), process_group(context.device) as (rank, world):
            result = function(**{**keywords, "context": replace(context, rank=rank, world=world)})
        if rank == 0:
            link.send(("result", result))
    except BaseException as error:
        link.send(("error", time.monotonic(), _portable(error)))
        sys.stderr.flush()
        # At once: leaving the group in order would wait for the others, who wait for this process.
        os._exit(1)


def _own(context: RunContext, link: Connection) -> RunContext:
    """The context of this process: its GPU, and a logger and a progress bar in the first alone."""
    device = context.device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    logger: MetricLogger = DistantLogger(link) if _rank() == 0 else NullLogger()
    return replace(context, device=device, logger=logger, progress=context.progress and _rank() == 0)


def _rank() -> int:
    return int(os.environ["RANK"])


class DistantLogger:
    """Sends what is logged to the process that holds the real logger."""

    def __init__(self, link: Connection) -> None:
        """Send through ``link``."""
        self._link = link

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log many values of one step."""
        self._send("log_metrics", dict(metrics), step)

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log a picture."""
        self._send("log_image", key, image, step)

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a figure."""
        self._send("log_figure", name, figure)

    def log_artifact(self, path: Path) -> None:
        """Log a file or folder."""
        self._send("log_artifact", path)

    def _send(self, method: str, *arguments: Any) -> None:
        self._link.send(("log", method, arguments))


def _follow(link: Connection) -> None:
    """Stop when told, and end with the process that started this one: with it the lock of the GPU goes."""
    try:
        while link.recv() == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """``error`` with its traceback as a note; one that does not pickle becomes a RuntimeError."""
    text = "".join(traceback.format_exception(error))
    try:
        found: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign exception's constructor raises
        found = RuntimeError(f"{type(error).__name__}: {error}")
    found.add_note(f"in process {_rank()} of {os.environ['WORLD_SIZE']}:\n{text}")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
