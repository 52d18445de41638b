"""Several splits that train together, each with a share of the samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panoda.data.loading.prepared import PreparedSplit, Sample, check_same_space, labelled_split
from panoda.models.core.colours import Colours, colour_statistics, rgb_to_lab
from panoda.system.errors import DataError

COLOUR_IMAGES = 100
"""Evenly spaced images of a split whose colours are looked at."""


class Mixture:
    """Splits of one label space as one; item i of part p has index offsets[p] + i.

    Args:
        weights: Role -> share of the training samples, relative to the others'.

    Attributes:
        offsets: Index of the first sample of each part.
        full_circle: Some part covers 360 degrees.
        class_pixels: (K,) int64 labelled pixels per class as training meets them: every part counted with its
            weight instead of its size.

    Raises:
        DataError: parts of different label spaces.
    """

    def __init__(self, parts: Mapping[str, PreparedSplit], weights: Mapping[str, float]) -> None:
        self.parts = dict(parts)
        first, *others = self.parts.values()
        for other in others:
            check_same_space(other, first)
        self.label_space, self.space = first.label_space, first.space
        self.num_classes = first.num_classes
        self.full_circle = any(part.full_circle for part in self.parts.values())
        self._splits = tuple(self.parts.values())
        self._weights = tuple(float(weights[role]) for role in self.parts)
        self.offsets = (0, *accumulate(len(part) for part in self._splits[:-1]))
        counts = np.stack([part.class_pixels for part in self._splits]).astype(float)
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))  # 0 where nothing is labelled
        present = counts > 0
        self._lacking = torch.from_numpy(present.any(axis=0) & ~present)  # (P, K)
        mixed = np.asarray(self._weights) @ shares / sum(self._weights)
        self.class_pixels = np.round(mixed * counts.sum()).astype(np.int64)

    @property
    def sampling(self) -> tuple[tuple[int, float], ...]:
        """(length, weight) of every part, for the loader."""
        return tuple((len(part), w) for part, w in zip(self._splits, self._weights, strict=True))

    def part_of(self, index: int) -> PreparedSplit:
        """The split that sample ``index`` belongs to."""
        return self._splits[bisect_right(self.offsets, index) - 1]

    def lacking(self, indices: Tensor) -> Tensor | None:
        """Classes that samples' own source never annotates, although another source does.

        Their pixels carry the label of something else or none there, so such a source must not teach that
        they are absent: the losses leave these classes out of the softmax of its pixels.

        Args:
            indices: (B,) sample indices, on the CPU.

        Returns:
            (B, K) bool; None where every source annotates all classes that any does.
        """
        if not bool(self._lacking.any()):
            return None
        part = torch.bucketize(indices, torch.tensor(self.offsets), right=True) - 1
        return self._lacking[part]

    def wraps(self, index: int) -> bool:
        """Columns of sample ``index`` wrap around."""
        return self.part_of(index).full_circle

    def __len__(self) -> int:
        return sum(len(part) for part in self._splits)

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; its id is ROLE/ID."""
        place = bisect_right(self.offsets, index) - 1
        role = tuple(self.parts)[place]
        sample = self._splits[place][index - self.offsets[place]]
        return Sample(**{**sample, "id": f"{role}/{sample['id']}", "index": index})


def source_splits(
    first: Path, more_sources: Path | None, sources: Mapping[str, float] | None
) -> dict[str, PreparedSplit]:
    """Open one split of every labelled source.

    Args:
        first: ``data/prepared/source/<split>``.
        more_sources: ``data/prepared/more_sources``; read only when ``sources`` names more than ``source``.
        sources: Section sources; None = the first source alone.

    Returns:
        Role -> split; ``source`` first.

    Raises:
        DataError: a missing split, or one without labels.
    """
    folders = {"source": first}
    for role in sources or {}:
        if role != "source":
            if more_sources is None:
                raise DataError(f"source {role}: no folder of further sources was given")
            folders[role] = more_sources / role / first.name
    return {role: labelled_split(folder) for role, folder in folders.items()}


def training_source(
    first: Path, more_sources: Path | None, sources: Mapping[str, float] | None
) -> PreparedSplit | Mixture:
    """What training samples from: the one labelled source, or a mixture of several."""
    splits = source_splits(first, more_sources, sources)
    return Mixture(splits, sources or {}) if len(splits) > 1 else splits["source"]


def mean_colours(source: PreparedSplit | Mixture) -> Colours:
    """Mean over images of their CIELAB channels' mean and deviation; parts of a mixture count by their weights."""
    if isinstance(source, Mixture):
        parts, weights = list(source.parts.values()), [weight for _, weight in source.sampling]
    else:
        parts, weights = [source], [1.0]
    mean, std = np.average([_colours(part) for part in parts], axis=0, weights=weights).round(6).tolist()
    return tuple(mean), tuple(std)


def _colours(split: PreparedSplit) -> np.ndarray:
    """(2, 3): mean and deviation."""
    found = []
    for index in np.linspace(0, len(split) - 1, min(COLOUR_IMAGES, len(split))).astype(int):
        sample = split[int(index)]
        lab = rgb_to_lab(sample["image"][None].float() / 255)
        mean, std, _ = colour_statistics(lab, sample["valid"][None])
        found.append(torch.stack((mean, std)).flatten(1).double().numpy())
    return np.mean(found, axis=0)
