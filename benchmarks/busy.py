"""A training step on an idle machine and beside one busy process: ``python -m benchmarks.busy``.

OpenMP's threads wait for each other at the end of every layer. Threads that spin hold the core which the one they
wait for needs as soon as another process is busy; threads that sleep at once cost time on an idle machine.
Every row is a process of its own with OpenMP told how to wait; rows take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping

from panoda.system.machine import choose_waiting, cores

WAYS: dict[str, Mapping[str, str]] = {
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "panoda's choice": {},
    "sleeping always (OMP_WAIT_POLICY=passive)": {"OMP_WAIT_POLICY": "passive"},
}
STEPS = 8


def main() -> None:
    """Print a table: median seconds of a step, and their ratio to those of spinning on the idle machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes per row")
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="further numbers of turns to spin")
    arguments = parser.parse_args()
    ways = WAYS | {f"spinning {count} turns": {"GOMP_SPINCOUNT": str(count)} for count in arguments.spins}
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(arguments.repeats):
        for name, variables in ways.items():
            for busy in (False, True):
                found.setdefault((name, busy), []).append(_measure(variables, busy=busy))
    usual = statistics.median(found[next(iter(ways)), False])
    print(f"{cores()} cores; medians of {arguments.repeats} processes of {STEPS} steps")
    print("| threads wait by | idle s | busy s | idle ratio | busy ratio |\n|---|---|---|---|---|")
    for name in ways:
        idle, busy = (statistics.median(found[name, state]) for state in (False, True))
        print(f"| {name} | {idle:.3f} | {busy:.3f} | {idle / usual:.2f} | {busy / usual:.2f} |")


def _measure(variables: Mapping[str, str], *, busy: bool) -> float:
    """Median seconds of a step in a new process."""
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    }
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, "-c", "from benchmarks.busy import step_seconds; step_seconds()"]
        done = subprocess.run(
            command, env=clean | dict(variables), capture_output=True, text=True, check=True
        )
        return float(done.stdout)
    finally:
        if other is not None:
            other.kill()
            other.wait()


def step_seconds() -> None:
    """Print the median seconds of training steps of the city's model at the city's sizes."""
    choose_waiting()
    import torch

    from panoda.models import create_model

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=19)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [torch.randn(2, 3, 96, 192), torch.randn(2, 3, 96, 512)]
    times = []
    for _ in range(STEPS + 2):
        start = time.perf_counter()
        loss = sum((model(images).float().square().mean() for images in batches), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    print(statistics.median(times[2:]))


if __name__ == "__main__":
    main()
