"""Colours of labelled splits, as a model remembers them."""

from __future__ import annotations

import numpy as np
import torch

from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.models.core.colours import Colours, colour_statistics, rgb_to_lab

IMAGES = 100
"""Evenly spaced images of a split that are read."""


def mean_colours(source: PreparedSplit | Mixture) -> Colours:
    """Mean over images of their CIELAB channels' mean and deviation; parts of a mixture count by their weights."""
    if isinstance(source, Mixture):
        parts = list(source.parts.values())
        weights = [weight for _, weight in source.sampling]
    else:
        parts, weights = [source], [1.0]
    mean, std = np.average([_colours(part) for part in parts], axis=0, weights=weights).round(6).tolist()
    return tuple(mean), tuple(std)


def _colours(split: PreparedSplit) -> np.ndarray:
    """(2, 3): mean and deviation."""
    found = []
    for index in np.linspace(0, len(split) - 1, min(IMAGES, len(split))).astype(int):
        sample = split[int(index)]
        lab = rgb_to_lab(sample["image"][None].float() / 255)
        mean, std, _ = colour_statistics(lab, sample["valid"][None])
        found.append(torch.stack((mean, std)).flatten(1).double().numpy())
    return np.mean(found, axis=0)
