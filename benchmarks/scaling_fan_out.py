"""What fanning work out costs: pieces that do nothing, through Prefect and Dask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panoda.system import pieces
from panoda.system.context import RunContext

Figures = Iterator[tuple[str, float]]
"""Names of docs/scaling.md's figures and what was measured."""


@dataclass(frozen=True)
class Nothing(pieces.Work):
    """Pieces that cost nothing but what every piece costs."""

    count: int
    name = "nothing"

    def identity(self) -> dict[str, Any]:
        """Nothing to know."""
        return {}

    def __len__(self) -> int:
        """Number of pieces."""
        return self.count

    def open(self, compute: Any) -> Callable[[int, Path], None]:
        """Make a piece of one small file."""

        def make(number: int, folder: Path) -> None:
            (folder / "nothing").touch()

        return make


def fan_out(root: Path, count: int) -> Figures:
    """Empty pieces through Prefect and Dask (two workers), and through this process."""
    from flows.fan_out import workers
    from flows.temporary_server import temporary_server
    from panoda.config import ClusterParams, RuntimeParams

    alone = cpu_seconds(lambda: pieces.finish(Nothing(count), root / "alone", RunContext())) / count
    yield "piece_seconds", alone
    runtime = RuntimeParams(device="cpu", threads=1)
    database = root / "prefect/prefect.db"
    with temporary_server(), workers(runtime, ClusterParams(workers=2)) as runner:
        context = RunContext(fan_out=runner)
        pieces.finish(Nothing(50), root / "first", context)
        time.sleep(2)  # events are written a little later
        before = database_bytes(database)
        start = _cpu()
        pieces.finish(Nothing(count), root / "second", context)
        for who, seconds in _cpu().items():
            yield f"task_{who}_seconds", (seconds - start[who]) / count
        time.sleep(5)
        yield "task_database_bytes", (database_bytes(database) - before) / count


def _cpu() -> dict[str, float]:
    """CPU time so far of this process (with Dask's scheduler), the Prefect server and the workers."""
    import psutil

    me = psutil.Process()
    found = {"driver": time.process_time(), "server": 0.0, "worker": 0.0}
    for child in me.children(recursive=True):
        times = child.cpu_times()
        served = "flows.temporary_server" in child.cmdline()
        found["server" if served else "worker"] += times.user + times.system
    return found


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU time of this process with all its threads."""
    start = time.process_time()
    action()
    return time.process_time() - start


def database_bytes(path: Path) -> int:
    """Bytes of an SQLite database with what waits in its log."""
    return sum(
        part.stat().st_size for part in path.parent.glob(f"{path.name}*") if not part.name.endswith("-shm")
    )
