from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from panoda.system import machine
from panoda.system.machine import loopback_past_proxies, room_for_sockets


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()


def test_the_processor_has_a_name() -> None:
    assert machine.processor().strip()


PEAKS = """
import torch
from panoda.system import machine

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
from panoda.system.machine import keep_freed_memory

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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"no_proxy": "a.example"}, {"no_proxy": "a.example"}),  # no proxy, nothing to keep from it
        ({"http_proxy": "http://p"}, dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")),
        (
            {"HTTPS_PROXY": "http://p", "NO_PROXY": ".example, localhost"},
            dict.fromkeys(("no_proxy", "NO_PROXY"), ".example,localhost,127.0.0.1,::1"),
        ),
        (
            {"all_proxy": "socks5://p", "NO_PROXY": "a", "no_proxy": "b"},
            {"NO_PROXY": "a,localhost,127.0.0.1,::1", "no_proxy": "b,localhost,127.0.0.1,::1"},
        ),
        ({"http_proxy": "http://p", "no_proxy": "*"}, {"no_proxy": "*", "NO_PROXY": "*"}),
    ],
)
def test_loopback_goes_past_every_proxy(given: dict[str, str], expected: dict[str, str]) -> None:
    environment = dict(given)
    loopback_past_proxies(environment)
    assert {k: v for k, v in environment.items() if k.lower() == "no_proxy"} == expected
    loopback_past_proxies(environment)
    assert {k: v for k, v in environment.items() if k.lower() == "no_proxy"} == expected


def test_a_temporary_folder_too_long_for_sockets_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TMPDIR", "kept")
    monkeypatch.setattr(tempfile, "tempdir", "/short")
    room_for_sockets()
    assert tempfile.gettempdir() == "/short" and os.environ["TMPDIR"] == "kept" and not caplog.messages
    long = str(tmp_path / ("long" * 25))
    monkeypatch.setattr(tempfile, "tempdir", long)
    room_for_sockets()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == "/tmp"
    assert caplog.messages == [f"temporary files go to /tmp: sockets do not fit into {long}"]


def test_threads_sleep_beside_a_busy_process_and_spin_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    for others, expected in ((0.0, {}), (1.0, {"GOMP_SPINCOUNT": "300"})):
        readings = iter((10.0, 10.0 + 0.2 * others))
        monkeypatch.setattr(machine, "_busy_seconds", readings.__next__)
        environment: dict[str, str] = {}
        machine.choose_waiting(environment)
        assert environment == expected
    for own in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        environment = dict(own)
        machine.choose_waiting(environment)
        assert environment == own
