"""What every stage is handed: device, precision, logger and the place for resume state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from panoda.system.machine import cores
from panoda.system.pieces import Runner


class MetricLogger:
    """Where metrics, pictures and files go: this one keeps nothing, ``panoda.tracking`` has the MLflow one."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log many values of one step in one call."""

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log an (H, W, 3) uint8 RGB picture."""

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a matplotlib figure under a file name."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, nested as in params.yaml, that are not the stage's own."""


@dataclass(frozen=True)
class RunContext:
    """How a stage runs; none of it is part of the result's identity.

    What has the name of a field of section runtime means what it means there (``panoda.config.running``).

    Attributes:
        dtype: Autocast type, or None for plain float32.
        state_dir: Folder for resume points, or None to keep none.
        progress: Show a progress bar (it stays quiet when the output is not a terminal).
        piece_images: Images per piece, at least.
        fan_out: Who makes the pieces; None = this process.
        micro_batches: So many at least, with ``on_oom`` accumulate: memory ran out with fewer.
        devices: Processes that training stages start, one per GPU (or per share of the CPU's cores).
        rank: Number of this process among those that train one model, from 0; the first one writes.
        world: Number of processes that train one model.
        shard: Each of them keeps a part of the weights (FSDP).
        cache: Folder in which DVC will keep a second copy of the result; None = no copy.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    logger: MetricLogger = field(default_factory=MetricLogger)
    state_dir: Path | None = None
    workers: int = 0
    progress: bool = False
    log_every: int = 10
    checkpoint_every: int = 100
    inference_batch: int = 4
    piece_images: int = 64
    fan_out: Runner | None = None
    keep_checkpoints: int = 2
    checkpoint_minutes: float = 10.0
    on_oom: Literal["fail", "accumulate"] = "fail"
    micro_batches: int = 1
    compile: bool = False
    deterministic: bool = False
    devices: int = 1
    rank: int = 0
    world: int = 1
    shard: bool = False
    cache: Path | None = None

    @property
    def main(self) -> bool:
        """This process writes files and logs."""
        return self.rank == 0

    @property
    def piece_size(self) -> int:
        """Images per piece: whole batches, so that where pieces end decides nothing about any batch."""
        return -(-self.piece_images // self.inference_batch) * self.inference_batch

    def batches(self, images: range) -> list[range]:
        """Images in the batches of their forward passes."""
        size = self.inference_batch
        return [images[start : start + size] for start in range(0, len(images), size)]

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to ``dtype`` on ``device``; a no-op for float32."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> device.

    Raises:
        ValueError: an unknown name, or a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device (runtime.device or --device) is {name!r}; expected auto, cpu, cuda or cuda:N"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device (runtime.device or --device) is {name!r} but {torch.cuda.device_count()} GPU(s) are "
            "visible; use auto"
        )
    return device


def resolve_devices(
    wanted: int | Literal["auto"], device: torch.device, *, batch_size: int, accumulate: int = 1
) -> int:
    """Number of processes that train a model on batches of ``batch_size`` images.

    ``auto`` is the most visible GPUs that divide the batch; 1 on the CPU or with cuda:N.

    Raises:
        ValueError: more than the visible GPUs, more than one with cuda:N, or the batch does not divide.
    """
    named = device.type == "cuda" and device.index is not None
    visible = torch.cuda.device_count() if device.type == "cuda" and not named else 1
    if wanted == "auto":
        return max(n for n in range(1, visible + 1) if batch_size % (n * accumulate) == 0)
    if device.type == "cuda" and wanted > visible:
        raise ValueError(
            f"runtime.devices is {wanted}, but runtime.device {device} is one GPU; set it to cuda"
            if named
            else f"runtime.devices is {wanted}, but {visible} GPU(s) are visible; use auto"
        )
    check_shares(batch_size, wanted, accumulate=accumulate)
    return wanted


def check_shares(batch_size: int, count: int, *, accumulate: int = 1) -> None:
    """ValueError for a batch that does not split into ``count`` equal shares, of ``accumulate`` micro-batches each."""
    if batch_size % (count * accumulate):
        fitting = [str(n) for n in range(1, count) if batch_size % (n * accumulate) == 0]
        parts = f", in {accumulate} micro-batches each (accumulate)" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} does not divide by the {count} processes of runtime.devices{parts}; it "
            f"is the whole batch of a step: set it to a multiple of {count * accumulate}, or devices to "
            f"{' or '.join(fitting)}"
        )


def resolve_workers(wanted: int | Literal["auto"], device: torch.device, devices: int = 1) -> int:
    """Processes of a loader, of which there are up to two in each of ``devices`` training processes.

    ``auto`` is 0 on the CPU, and on GPUs a core for each, 4 at most.
    """
    if wanted != "auto":
        return wanted
    return 0 if device.type == "cpu" else min(4, max(1, cores() // (2 * devices)))


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """``auto``, ``float32``, ``bfloat16`` or ``float16`` -> autocast dtype (None = float32)."""
    if name == "auto":
        if device.type != "cuda":
            return None
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def set_deterministic(on: bool) -> None:
    """The same bits every time on the same device, or torch's fastest ways; of the whole process.

    Operators that have no deterministic way raise an error (``panoda.engine.failures``). Call it before
    the GPU is first used: cuBLAS reads its workspace from the environment.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # setting it imports torch's compiler (seconds)
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False


def set_threads(count: int) -> None:
    """Set torch's CPU threads; 0 = every core this process may use."""
    torch.set_num_threads(count or cores())
