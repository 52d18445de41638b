"""What this machine has, and how much memory this process takes of it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
from pathlib import Path

_KEEP = {
    -4: 0,  # M_MMAP_MAX: no block comes from the system alone
    -1: -1,  # M_TRIM_THRESHOLD: nothing goes back
    -2: 64 << 20,  # M_TOP_PAD: bytes fetched beyond what is asked for
}
"""mallopt(3): options by their number in malloc.h."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name of the CPU."""
    try:
        found = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = []
    return found[0] if found else platform.processor() or platform.machine()


def peak_memory() -> int:
    """Bytes of resident memory at the peak, since the start or the last ``reset_peak_memory``."""
    return _resident("VmHWM")


def reset_peak_memory() -> int:
    """Forget the peak so far; bytes in use now, or the old peak where the system cannot forget it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except OSError:
        return _resident("VmHWM")


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation; True where it does (Linux with glibc).

    By itself it hands blocks above 32 MiB back to the system, which zeroes as many pages when the next layer
    wants them: with large images a fifth of the time (docs/benchmarks.md). In return the process stays as
    large as it once was. Whoever has set MALLOC_MMAP_MAX_ has decided otherwise.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_MAX_" in os.environ:
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all([set_option(option, value) for option, value in _KEEP.items()])


def _resident(field: str) -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at its peak; elsewhere than on Linux always the peak."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
