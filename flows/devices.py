"""The devices that a stage computes on: which, how many, held against other stages."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from panoda.config import Params
from panoda.pipeline.table import Stage
from panoda.system.locks import file_lock, gpu_lock_path, own_folder
from panoda.system.machine import keep_freed_memory

if TYPE_CHECKING:
    import torch

log = logging.getLogger("panoda")
GPU_LIMIT = "gpu"
"""The Prefect server's limit of stages that compute on GPUs at a time."""


def take_devices(stage: Stage, params: Params, stack: ExitStack) -> tuple[torch.device, int]:
    """The device and how many processes train on such ones, until ``stack`` ends; torch is set up.

    GPUs are held against other stages.
    """
    import torch

    from panoda.system.context import resolve_device, resolve_devices, set_deterministic, set_threads

    runtime = params.runtime
    set_threads(runtime.threads)
    set_deterministic(runtime.deterministic)
    if stage.on_gpu:
        keep_freed_memory()
    if runtime.compile:  # what is compiled is code: not torch's own place, which any user could have made
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own_folder() / "inductor"))
    elsewhere = runtime.cluster is not None and runtime.cluster.address and stage.in_pieces == "all"
    device = resolve_device(runtime.device if stage.on_gpu and not elsewhere else "cpu")
    count = 1
    if stage.trains:
        own = getattr(params, stage.trains)
        count = resolve_devices(runtime.devices, device, batch_size=own.batch_size, accumulate=own.accumulate)
    hold_gpus([device] if count == 1 else [torch.device("cuda", i) for i in range(count)], stack)
    return device, count


def hold_gpus(devices: list[torch.device], stack: ExitStack) -> None:
    """Hold the GPUs among ``devices`` against other flows until ``stack`` ends."""
    import torch

    # One order for all stages, whatever numbers CUDA_VISIBLE_DEVICES gives the GPUs: two stages that want
    # the same ones never hold one each.
    gpus = [device for device in devices if device.type == "cuda"]
    found = {str(torch.cuda.get_device_properties(gpu).uuid): gpu for gpu in gpus}
    for identity, gpu in sorted(found.items()):
        stack.enter_context(file_lock(gpu_lock_path(identity), what=f"GPU {gpu}", say=log.warning))
    if gpus:
        stack.enter_context(gpu_slot())


def what_to_lower(stage: Stage) -> str:
    """What to lower when memory runs out outside of a training step, which has a message of its own."""
    if stage.trains:
        return f"Lower {stage.trains}.batch_size"
    if not stage.on_gpu:
        return "Free some memory, or use a machine that has more"
    advice = f"Lower runtime.inference_batch or the largest of {stage.name}.scales"
    return f"{advice}, or set evaluate.sliding" if stage.name == "evaluate" else advice


def shares(stage: Stage, params: Params, devices: int) -> dict[str, Any]:
    """What the record says of the processes that train; several are announced."""
    if not stage.trains:
        return {}
    batch = int(getattr(params, stage.trains).batch_size)
    if devices > 1:
        log.warning(
            "%s: %d processes, each with %d of the %d images of every step (and domain)",
            stage.name,
            devices,
            batch // devices,
            batch,
        )
    return {"processes": devices, "batch_size": batch, "batch_size_per_process": batch // devices}


@contextmanager
def gpu_slot() -> Iterator[None]:
    """A slot of the Prefect server's limit ``gpu``.

    Only a lasting server frees the slot of a killed process; with a temporary one the file lock, which the
    kernel frees, does the work alone.
    """
    from prefect.concurrency.sync import concurrency
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        yield
        return
    with concurrency(GPU_LIMIT, occupy=1, strict=False):
        yield
