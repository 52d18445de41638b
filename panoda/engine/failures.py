"""What torch reports in its own words, said so that one knows what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
)
"""RuntimeErrors that are no torch.OutOfMemoryError: of the CPU's allocator, of the driver (a kernel is loaded
while others fill the GPU), of cuBLAS, and of cuDNN before and from 9 on."""
_NOT_DETERMINISTIC = "does not have a deterministic implementation"


_SHARED_MEMORY = ("shared memory", "/dev/shm", "Bus error", "unable to mmap", "No space left on device (28)")
"""Of torch's loader processes and of NCCL; a file of torch's in /dev/shm is called </torch_...>."""


class SharedMemoryFull(ValueError):
    """What processes hand each other does not fit into /dev/shm."""


class OutOfMemory(ValueError):
    """A step does not fit into memory."""


class NotDeterministic(ValueError):
    """Deterministic mode is on, and an operator has no deterministic way."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY)


@contextmanager
def explained(what: Callable[[], str], advice: Callable[[], str]) -> Iterator[None]:
    """Turn failed allocations and a missing deterministic operator into errors that say what to do.

    ``what`` was computed and the ``advice`` are asked for only when it failed.

    Raises:
        OutOfMemory: names both.
        SharedMemoryFull: says how to have more, or do without.
        NotDeterministic: names the operator.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if is_out_of_memory(error):
            raise OutOfMemory(f"out of memory: {what()} ({reason}). {advice()}") from error
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _SHARED_MEMORY):
            raise SharedMemoryFull(
                f"shared memory is full: {what()} ({reason}). Make /dev/shm larger (docker run "
                "--shm-size=8g; Kubernetes: an emptyDir of medium Memory), or set runtime.workers to 0"
            ) from error
        if _NOT_DETERMINISTIC in str(error):
            raise NotDeterministic(
                f"runtime.deterministic is on, but {reason.split(_NOT_DETERMINISTIC)[0].strip()} "
                f"{_NOT_DETERMINISTIC} on this device: compute on the CPU (runtime.device: cpu), or set "
                "runtime.deterministic to false"
            ) from error
        raise
