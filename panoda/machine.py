"""What this machine has, and how much memory this process takes of it."""

from __future__ import annotations

import os
import platform
import re
import resource
from pathlib import Path


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


def _resident(field: str) -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at its peak; elsewhere than on Linux always the peak."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
