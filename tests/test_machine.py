from __future__ import annotations

import os
import subprocess
import sys

import pytest

from panoda import machine


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()


def test_the_processor_has_a_name() -> None:
    assert machine.processor().strip()


PEAKS = """
import torch
from panoda import machine

large = torch.ones(2**26, dtype=torch.uint8)
del large
before = machine.reset_peak_memory()
print(machine.peak_memory() - before)
large = torch.ones(2**26, dtype=torch.uint8)
print(machine.peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_is_counted_from_its_reset() -> None:
    """In a process of its own: one that keeps freed memory has no new peak."""
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True)
    assert not run.returncode, run.stderr
    at_rest, peak = map(int, run.stdout.split())
    assert at_rest < 2**25 and 2**26 * 0.9 < peak < 2**27


FAULTS = """
import resource, torch
from panoda.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(48 << 18)  # 48 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
if keep_freed_memory():
    faults()
    print(first, faults())
"""


def test_freed_memory_is_kept() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    if not run.stdout:
        pytest.skip("not the GNU C library")
    before, after = map(int, run.stdout.split())
    assert after < before / 10
    environment["MALLOC_MMAP_MAX_"] = "65536"
    told = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True)
    assert not told.returncode and not told.stdout
