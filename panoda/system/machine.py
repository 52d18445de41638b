"""What this machine has, how much memory this process takes of it, and settings of it that get in the way."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import resource
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

log = logging.getLogger("panoda")
_KEEP = {
    -4: 0,  # M_MMAP_MAX: no block comes from the system alone
    -1: -1,  # M_TRIM_THRESHOLD: nothing goes back
    -2: 64 << 20,  # M_TOP_PAD: bytes fetched beyond what is asked for
}
"""mallopt(3): options by their number in malloc.h."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LONGEST_FOLDER = 60
"""Bytes of a temporary folder that leave room for the names of sockets; a path may have 103 (macOS)."""


SPINS = 10_000
"""Turns that a waiting thread of OpenMP spins before it sleeps."""


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


def wait_shortly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP's threads sleep after a short spin at barriers: before torch is loaded, and in processes to come.

    By itself a thread spins for milliseconds, on the core that the thread it waits for needs when another
    process is busy (``benchmarks/busy.py``). Whoever has set one of OpenMP's variables has decided otherwise.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def loopback_past_proxies(environment: MutableMapping[str, str] = os.environ) -> None:
    """Connections within this machine go past every proxy of the environment, here and in processes to come.

    Both spellings of ``no_proxy`` get what is missing; libraries differ in which they read.
    """
    if not proxy_variables(environment):
        return  # a no_proxy alone would hide the proxies of the system's own settings
    either = {name: environment.get(name, "") for name in ("no_proxy", "NO_PROXY")}
    for name, given in either.items():
        known = given or next(filter(None, either.values()), "")
        names = [part.strip() for part in known.split(",") if part.strip()]
        if "*" not in names:
            names += [host for host in _LOOPBACK if host not in names]
        environment[name] = ",".join(names)


def proxy_variables(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """The proxies that the environment names, by variable."""
    return {name: value for name, value in environment.items() if name.lower() in _PROXIES and value}


def room_for_sockets() -> None:
    """Have a temporary folder whose name leaves room for sockets in it, here and in processes to come.

    The path of a socket may have 103 bytes. A longer folder, such as some clusters make for every job, is
    replaced by the system's.
    """
    given = tempfile.gettempdir()
    if len(os.fsencode(given)) <= _LONGEST_FOLDER:
        return
    for shorter in ("/tmp", "/var/tmp"):
        if os.access(shorter, os.W_OK | os.X_OK):
            log.warning("temporary files go to %s: sockets do not fit into %s", shorter, given)
            os.environ["TMPDIR"] = tempfile.tempdir = shorter
            return
    raise OSError(f"{given}: too long for the path of a socket in it; set TMPDIR to a shorter folder")


def _resident(field: str) -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at its peak; elsewhere than on Linux always the peak."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
