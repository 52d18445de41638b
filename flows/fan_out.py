"""Pieces of a stage as tasks on a Dask cluster, through Prefect's own task runner.

Every piece is a Prefect task with retries; Dask gives the pieces of a lost worker to another one. Workers
write to the folder of the stage's resume state, so the project has to lie on a file system that all of them
share, under one path. docs/cluster.md says how to start a cluster, why it is Dask and whom it has to trust:
work travels by Dask's own transport, and who reaches a scheduler can run anything on its workers.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL

from panoda.config import ClusterParams, ConfigError, RuntimeParams
from panoda.system.locks import own_folder
from panoda.system.machine import cores, keep_freed_memory
from panoda.system.pieces import Runner, Work, make_piece

if TYPE_CHECKING:
    from panoda.system.context import RunContext

AHEAD = 1000
"""Pieces submitted before the first of them is done; what is known of a piece takes about 10 kB."""
ANSWER_WITHIN = 10.0
"""Seconds in which a running scheduler has to answer."""
LOADED = time.time()
"""When this process loaded its first code of the project, or little later."""
RETRY_DELAY = 5.0
"""Seconds before a piece that failed is tried again."""


@contextmanager
def workers(runtime: RuntimeParams, cluster: ClusterParams) -> Iterator[Runner]:
    """Connect to the cluster, or start one on this machine for as long as the stage runs.

    Raises:
        ConfigError: Dask is not installed, nothing answers at the address, or workers do not reach Prefect or
            run old code.
    """
    try:
        from distributed import Client, LocalCluster, Security
        from prefect_dask import DaskTaskRunner  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"runtime.cluster needs Dask and prefect-dask ({error}); install panoda[cluster], or set "
            "runtime.cluster to null"
        ) from error
    names = (field.name for field in fields(Compute))
    compute = Compute(**{name: getattr(runtime, name) for name in names})
    if cluster.address is None:
        keywords: dict[str, Any] = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
        logging.getLogger("distributed").setLevel(logging.ERROR)
        # Keys of this cluster alone: its port is open to everybody who works on this machine.
        keywords |= {"silence_logs": logging.ERROR, "security": Security.temporary()}
        # Not Dask's own place: any user could have made that.
        keywords |= {"local_directory": str(own_folder() / "dask")}
        share = max(1, cores() // cluster.workers)
        compute = replace(compute, threads=compute.threads or share)
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")  # read by the workers
        with LocalCluster(n_workers=cluster.workers, **keywords) as local:
            yield _Dask(local.scheduler_address, cluster.retries, compute, local.security)
        return
    try:
        client = Client(cluster.address, timeout=ANSWER_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"runtime.cluster.address {cluster.address}: no Dask scheduler answers ({error}); start one with "
            "`dask scheduler`, or set it to null for workers on this machine"
        ) from error
    with client:
        _check_workers(client)
    yield _Dask(cluster.address, cluster.retries, compute)


def _check_workers(client: Any) -> None:
    """A stage that was started without a lasting server has one that only this machine sees."""
    url = PREFECT_API_URL.value()
    try:
        reached = client.run(_reaches, url)
    except ImportError as error:
        raise ConfigError(
            f"the Dask workers cannot import the project ({error}); start them with its environment and with "
            "PYTHONPATH set to the checkout"
        ) from error
    lost = sorted(worker for worker, found in reached.items() if not found)
    if lost:
        raise ConfigError(
            f"{len(lost)} of {len(reached)} Dask workers, such as {lost[0]}, cannot reach Prefect at {url}; "
            "run `prefect server start --host 0.0.0.0` and set PREFECT_API_URL to an address that they reach"
        )
    changed = {worker: files for worker, files in client.run(_changed).items() if files}
    if changed:
        worker, files = min(changed.items())
        raise ConfigError(
            f"{len(changed)} of {len(reached)} Dask workers, such as {worker}, have loaded code that was "
            f"changed since ({files[0]}): start them again, or pieces would be made by the old code"
        )


def _changed() -> list[str]:
    """Source files of the project that were written after this process, a worker, had loaded them."""
    files = {
        str(module.__file__)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in ("panoda", "flows") and getattr(module, "__file__", None)
    }
    return sorted(f for f in files if Path(f).is_file() and Path(f).stat().st_mtime > LOADED)


def _reaches(url: str) -> bool:
    """Whether Prefect's server answers; runs on a worker."""
    try:
        with urlopen(f"{url}/health", timeout=ANSWER_WITHIN) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass(frozen=True)
class Compute:
    """How a worker computes: the fields of section runtime, resolved on the worker's own machine."""

    device: str
    precision: str
    threads: int
    deterministic: bool
    inference_batch: int


class Order:
    """Work and how to compute it. No dataclass: Prefect would search it for futures, piece by piece."""

    def __init__(self, work: Work, compute: Compute) -> None:
        """Of one stage."""
        self.work, self.compute = work, compute


@dataclass(frozen=True)
class _Dask:
    """Makes pieces on a Dask cluster."""

    address: str
    retries: int
    compute: Compute
    security: Any = None

    def __call__(self, work: Work, folder: Path, numbers: Sequence[int], done: Callable[[], None]) -> None:
        """Submit every piece and wait for all."""
        from prefect_dask import DaskTaskRunner

        order = Order(work, self.compute)
        piece = make.with_options(retries=self.retries, task_run_name=f"{work.name} {{number}}")

        pending: deque[PrefectFuture[Any]] = deque()
        own = {"security": self.security}  # None: what Dask's own configuration says
        with DaskTaskRunner(address=self.address, client_kwargs=own) as runner:
            for number in numbers:
                parameters = {"order": order, "folder": str(folder), "number": number}
                pending.append(runner.submit(piece, parameters))
                if len(pending) >= AHEAD:
                    pending.popleft().result()
                    done()
            while pending:
                pending.popleft().result()
                done()


def _worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """Bad input stays bad; a full disk, a lost connection or a busy GPU may pass."""
    try:
        state.result()
    except (ValueError, TypeError):
        return False
    except Exception:
        return True
    return False


@task(
    name="piece",
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=_worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def make(order: Order, folder: str, number: int) -> None:
    """Make one piece; runs on a worker.

    Args:
        order: What is made, and how.
        folder: Folder of the work's pieces.
        number: Number of the piece.
    """
    make_piece(order.work, _context(order.compute), Path(folder), number)


@cache
def _context(compute: Compute) -> RunContext:
    from panoda.system.context import (
        RunContext,
        resolve_device,
        resolve_precision,
        set_deterministic,
        set_threads,
    )

    # What fails comes back as an error, which is reported once; Prefect's server has the traceback.
    logging.getLogger("prefect.task_runs").propagate = False
    set_threads(compute.threads)
    set_deterministic(compute.deterministic)
    keep_freed_memory()
    device = resolve_device(compute.device)
    return RunContext(
        device=device,
        dtype=resolve_precision(compute.precision, device),
        inference_batch=compute.inference_batch,
    )
