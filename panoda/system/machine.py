"""What this machine has, how much memory this process takes of it, and settings of it that get in the way."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import resource
import tempfile
import time
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


SPINS_BESIDE_OTHERS = 300
"""Turns that a waiting thread of OpenMP spins before it sleeps, where other processes want the cores too."""


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


def choose_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP's threads sleep at barriers if other processes are busy now; called before torch is loaded.

    By itself a waiting thread spins for milliseconds: best on cores of one's own, but beside a busy process it
    holds the core that the thread it waits for needs (``benchmarks/busy.py``). The number of threads, and with it
    every bit of a result, stays. Whoever has set one of OpenMP's variables has decided already.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment) and contended():
        environment["GOMP_SPINCOUNT"] = str(SPINS_BESIDE_OTHERS)


def contended(seconds: float = 0.2) -> bool:
    """Whether other processes leave this one fewer cores than it may use; False where Linux does not tell."""
    try:
        start, own = _busy_seconds(), time.process_time()
        time.sleep(seconds)
        others = (_busy_seconds() - start - (time.process_time() - own)) / seconds
    except (OSError, ValueError):
        return False
    return (os.cpu_count() or 1) - others < cores() - 0.5


def _busy_seconds() -> float:
    """Seconds that all cores together have worked since the system started: proc_stat(5)."""
    line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _waiting, interrupts, soft, *_ = map(int, line.split()[1:])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


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
