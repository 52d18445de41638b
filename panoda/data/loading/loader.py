"""Batches of samples: random ones for training, ordered ones for evaluation.

Training batch k depends on (seed, k) alone: the order of an epoch comes from (seed, epoch), the
augmentation of a sample from (seed, k, position in the batch). So neither the number of workers nor the
step a run was resumed at changes what is seen.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from panoda.data.loading.image_crops import ImageCrop
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.transforms import AugmentedSample, JointTransform
from panoda.system.machine import room_for_sockets

log = logging.getLogger("panoda")
SHARED_MEMORY = Path("/dev/shm")
"""Where the tensors of loader processes lie until they are fetched; 64 MB in a Docker container."""
LOADERS = 2
"""Loaders of a training process: source and target."""
_EPOCH_STREAM, _SAMPLE_STREAM = 0, 1


class Batch(TypedDict):
    """Stacked samples.

    Attributes:
        image: (B, 3, H, W) uint8 RGB.
        label: (B, H, W) int64 train ids or 255.
        valid: (B, H, W) bool, False in ignore bands and padding.
        ids: B item ids.
        indices: (B,) int64 positions in the split.
        rows: (B, H) float32, which row of the whole image each row shows (``AugmentedSample``).
        columns: (B, W) float32, the same for columns.
    """

    image: Tensor
    label: Tensor
    valid: Tensor
    ids: list[str]
    indices: Tensor
    rows: Tensor
    columns: Tensor


SampleSource = PreparedSplit | Mixture
"""What the loaders read from."""
Augment = JointTransform | ImageCrop
"""What makes a training sample of a stored one."""


def training_batches(
    dataset: SampleSource,
    *,
    batch_size: int,
    augment: Augment,
    seed: int,
    start_step: int,
    num_steps: int,
    workers: int,
    share: tuple[int, int] = (0, 1),
    pin: bool = False,
) -> Iterator[Batch]:
    """Yield the ``num_steps`` batches of steps start_step, start_step + 1, ...

    Args:
        batch_size: Images per batch, over all shares.
        workers: Loader processes; 0 = load in this process.
        share: (part, parts): yield that one of equal parts of every batch, images in the order of the batch.
        pin: Batches of loader processes come in page-locked memory, from which a GPU copies by itself.

    Raises:
        ValueError: an impossible combination of augmentation and data set.
    """
    if augment.yaw_roll and not dataset.full_circle:
        raise ValueError("yaw_roll needs panoramas of a full 360 degrees; set yaw_roll: false")
    part, parts = share
    own = range(part * batch_size // parts, (part + 1) * batch_size // parts)
    steps = _Steps(dataset, batch_size=batch_size, positions=own, augment=augment, seed=seed)
    wanted = range(start_step, start_step + num_steps)
    return numbered_batches(steps, wanted, workers=workers, pin=pin, loaders=LOADERS * parts)


def numbered_batches(
    batches: Dataset[Any], wanted: range, *, workers: int, pin: bool = False, loaders: int = 1
) -> Iterator[Any]:
    """Batches (dicts of tensors and lists) by their numbers, loaded here or in ``workers`` processes.

    Args:
        pin: Batches of loader processes come in page-locked memory.
        loaders: Such iterators at a time, which share ``SHARED_MEMORY``.
    """
    if workers == 0:
        return (batches[step] for step in wanted)
    # Not fork: a copy of a process with threads and signal handlers of others (Prefect) does not end well.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    room_for_sockets()
    piped = len(wanted) > 0 and _scarce(batches[wanted[0]], loaders * (2 * workers + 2))
    how: Any = _as_arrays if piped else None
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        multiprocessing_context=method,
        worker_init_fn=_leave_signals_to_the_parent,
        collate_fn=how,
        pin_memory=pin and not piped,
    )
    return map(partial(_as_tensors, pin=pin), loader) if piped else iter(loader)


def _scarce(batch: Any, count: int) -> bool:
    """Whether shared memory is too small for ``count`` such batches; it is said."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    needed = count * sum(t.numel() * t.element_size() for t in tensors)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if free >= needed:
        return False
    log.warning(
        "%s has %.0f MB free, batches of loader processes may take %.0f: they come through pipes, which is "
        "slower; give it more (docker run --shm-size=%dm), or set runtime.workers to 0",
        *(SHARED_MEMORY, free / 1e6, needed / 1e6, -(-needed // (1 << 20))),
    )
    return True


def _as_arrays(batch: Any) -> dict[str, Any]:
    """The batch without tensors: arrays travel through the pipe itself."""
    return {key: value.numpy() if isinstance(value, Tensor) else value for key, value in batch.items()}


def _as_tensors(arrays: dict[str, Any], *, pin: bool) -> Batch:
    def tensor(array: np.ndarray) -> Tensor:
        found = torch.from_numpy(array)
        return found.pin_memory() if pin else found

    return cast(Batch, {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()})


def collate(samples: list[AugmentedSample]) -> Batch:
    """Stack samples of one size.

    Raises:
        ValueError: samples of different sizes.
    """
    sizes = sorted({tuple(s["image"].shape[1:]) for s in samples})
    if len(sizes) > 1:
        raise ValueError(
            f"a batch holds images of {' and '.join(f'{w}x{h}' for h, w in sizes)} pixels: sources prepared "
            "at different sizes; set crop_height and crop_width of the augmentation"
        )
    return Batch(
        image=torch.stack([s["image"] for s in samples]),
        label=torch.stack([s["label"] for s in samples]).long(),
        valid=torch.stack([s["valid"] for s in samples]),
        ids=[s["id"] for s in samples],
        indices=torch.tensor([s["index"] for s in samples]),
        rows=torch.stack([s["rows"] for s in samples]),
        columns=torch.stack([s["columns"] for s in samples]),
    )


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM reach whole groups of processes; the parent still needs batches to end in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class _Steps(Dataset[Batch]):
    """Step number -> the images at some positions of its batch."""

    dataset: SampleSource
    batch_size: int
    positions: range
    augment: Augment
    seed: int

    def __getitem__(self, step: int) -> Batch:
        samples = []
        for position in self.positions:
            index = _index(self.dataset.sampling, self.seed, step * self.batch_size + position)
            generator = _generator(self.seed, _SAMPLE_STREAM, step, position)
            wraps = self.dataset.wraps(index)
            samples.append(self.augment(self.dataset[index], generator, full_circle=wraps))
        return collate(samples)


def _index(sampling: tuple[tuple[int, float], ...], seed: int, number: int) -> int:
    """Index of draw ``number``: parts take turns by weight, each runs through epochs of its own."""
    part, number = _turn([weight for _, weight in sampling], number)
    lengths = [length for length, _ in sampling]
    epoch, place = divmod(number, lengths[part])
    return sum(lengths[:part]) + epoch_order(seed, epoch, lengths[part], part)[place]


def _turn(weights: list[float], number: int) -> tuple[int, int]:
    """Part of draw ``number``, and how many draws of that part came before.

    After n draws every part has had its share of n, to within one draw for each part.
    """
    rest = sum(weights)
    for part, weight in enumerate(weights[:-1]):
        share = weight / rest
        before = math.floor(number * share)
        if math.floor((number + 1) * share) > before:
            return part, before
        number, rest = number - before, rest - weight
    return len(weights) - 1, number


@lru_cache(maxsize=16)
def epoch_order(seed: int, epoch: int, length: int, part: int = 0) -> list[int]:
    """A random order of ``length`` samples, another one in every epoch."""
    key = (seed, _EPOCH_STREAM, epoch, part) if part else (seed, _EPOCH_STREAM, epoch)
    return torch.randperm(length, generator=_generator(*key)).tolist()


def _generator(*key: int) -> torch.Generator:
    """A generator whose stream is independent for every key."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
