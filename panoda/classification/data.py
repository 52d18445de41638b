"""Images in folders of classes: listing, augmenting and batching.

Batch k depends on (seed, k) alone, as everywhere (``panoda.data.loading.loader``). timm's transforms draw from
the global generators of Python, NumPy and torch, so each sample seeds all three and puts them back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from panoda.data.formats.browse import images_below, warn_left_out
from panoda.data.formats.images import IMAGE_SUFFIXES, read_rgb
from panoda.data.loading.loader import epoch_order, numbered_batches
from panoda.engine.seeds import stream_seed
from panoda.system.errors import DataError

Transform = Callable[[Image.Image], Tensor]


class ClassBatch(TypedDict):
    """Images (B, 3, H, W) float32, normalised; classes (B,) int64; paths."""

    image: Tensor
    label: Tensor
    ids: list[str]


@dataclass(frozen=True)
class ClassFolder:
    """A split: (path, class) of images; a class is its position in ``classes``."""

    folder: Path
    classes: tuple[str, ...]
    items: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.items)


def read_split(folder: Path, classes: tuple[str, ...] | None = None) -> ClassFolder:
    """List ``folder/CLASS/*.jpg``; hidden folders are left out.

    Args:
        classes: The names to go by, such as those of train; None takes the folder's, sorted.

    Raises:
        DataError: no such folder, no images, a class without images, or one that ``classes`` lacks.
    """
    layout = "expected folders of classes with images in them, such as train/cat/1.jpg and val/cat/2.jpg"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {layout}")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no folders in it; {layout}")
    names = classes or tuple(found)
    if unknown := [name for name in found if name not in names]:
        raise DataError(
            f"{folder}: has {', '.join(unknown[:8])}, which are none of the {len(names)} classes to learn "
            f"({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}); remove these folders, or add them to train"
        )
    items: list[tuple[Path, int]] = []
    for name in found:
        paths, left = images_below(folder / name)
        warn_left_out(left)
        if not paths:
            raise DataError(
                f"{folder / name}: no images in it (files that end in {', '.join(sorted(IMAGE_SUFFIXES))}); "
                "put some there, or remove the folder"
            )
        items += [(path, names.index(name)) for path in paths]
    return ClassFolder(folder, names, tuple(items))


def read_train_and_val(folder: Path) -> tuple[ClassFolder, ClassFolder]:
    """Both splits of a data set, with the classes of train.

    Raises:
        DataError: as ``read_split``, or a train split of one class.
    """
    train = read_split(folder / "train")
    if len(train.classes) < 2:
        raise DataError(
            f"{train.folder}: one class alone ({train.classes[0]}), so there is nothing to learn; expected two "
            "or more folders"
        )
    return train, read_split(folder / "val", train.classes)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch's CPU start from ``seed``."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class _Batches(Dataset[ClassBatch]):
    """Step -> a random batch; with ``seed`` None, batches in the order of the split."""

    split: ClassFolder
    transform: Transform
    batch_size: int
    seed: int | None

    def __getitem__(self, step: int) -> ClassBatch:
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        if self.seed is None:
            numbers = numbers[: len(self.split) - numbers.start]
        images, labels, ids = [], [], []
        for number in numbers:
            path, label = self.split.items[self._index(number)]
            with seeded(stream_seed(self.seed or 0, "augment", number)):
                images.append(self.transform(read_rgb(path)))
            labels.append(label)
            ids.append(str(path))
        return ClassBatch(image=torch.stack(images), label=torch.tensor(labels), ids=ids)

    def _index(self, number: int) -> int:
        """Item of draw ``number``: every epoch has an order of its own."""
        if self.seed is None:
            return number
        epoch, place = divmod(number, len(self.split))
        return epoch_order(self.seed, epoch, len(self.split))[place]


def random_batches(
    split: ClassFolder, transform: Transform, *, batch_size: int, seed: int, steps: range, **how: Any
) -> Iterator[ClassBatch]:
    """The batches of some steps; ``how`` as in ``numbered_batches``."""
    return numbered_batches(_Batches(split, transform, batch_size, seed), steps, **how)


def ordered_batches(
    split: ClassFolder, transform: Transform, *, batch_size: int, **how: Any
) -> Iterator[ClassBatch]:
    """Every image once."""
    count = -(-len(split) // batch_size)
    return numbered_batches(_Batches(split, transform, batch_size, None), range(count), **how)
