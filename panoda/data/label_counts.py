"""Counting the values of a label file: pixels of each class, of no class, and of values nobody declared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from panoda.data.dataset import DataError
from panoda.data.declaration import LabelEncoding
from panoda.data.images import read_ids, read_rgb
from panoda.labels import IGNORE_INDEX, get_label_space

UNKNOWN = 254
"""In a table: a value that is listed nowhere. No label space has a class of this id."""


@dataclass(frozen=True)
class LabelRule:
    """A label encoding as pairs of (raw value, class id or 255); a colour is R * 65536 + G * 256 + B."""

    palette: bool
    pairs: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    others_ignored: bool


@dataclass(frozen=True)
class LabelCounts:
    """What is in one label file.

    Attributes:
        size: Height and width in pixels.
        class_pixels: (K,) int64; empty without a rule.
        ignored: Pixels of values that mean unlabelled.
        wrong: Value outside the encoding ("7", or "R,G,B") -> pixels, most frequent first.
        uniform: The label has one value.
    """

    size: tuple[int, int]
    class_pixels: np.ndarray
    ignored: int
    wrong: dict[str, int]
    uniform: bool


def label_rule(labels: LabelEncoding) -> LabelRule:
    """The pairs of a declared encoding.

    Raises:
        DataError: unknown label space, a colour that is none, or a class that the space does not have.
    """
    try:
        space = get_label_space(labels.space)
    except ValueError as error:
        raise DataError(f"labels.space: {error}") from error
    if labels.encoding == "palette":
        palette = labels.palette
        colours = (
            {",".join(map(str, c)): i for i, c in enumerate(space.palette)} if palette is None else palette
        )
        pairs = {_colour(text): new for text, new in colours.items()}
    else:
        own = {i: i for i in range(space.num_classes)} | {IGNORE_INDEX: IGNORE_INDEX}
        pairs = dict(own if labels.ids is None else labels.ids)
        pairs |= dict.fromkeys(labels.void, IGNORE_INDEX)
    for raw, new in pairs.items():
        if new != IGNORE_INDEX and not 0 <= new < space.num_classes:
            raise DataError(
                f"labels: {raw} becomes {new}, but {space.name} has classes 0..{space.num_classes - 1} "
                "(and 255 for ignored)"
            )
    ignored = labels.others == "ignore"
    return LabelRule(labels.encoding == "palette", tuple(pairs.items()), space.names, ignored)


def count_label(path: Path, rule: LabelRule | None) -> LabelCounts:
    """Read and count a label file.

    Raises:
        DataError: unreadable file, or single-channel ids expected and others found.
    """
    if rule is not None and rule.palette:
        rgb = np.asarray(read_rgb(path)).astype(np.int32)
        raw = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        values, pixels = np.unique(raw, return_counts=True)
    else:
        raw = read_ids(path)
        low, high = int(raw.min()), int(raw.max())
        if high - low < 1 << 16:
            # One pass; sorting two million values would cost as much as decoding the image.
            pixels = np.bincount((raw - low).ravel() if low else raw.ravel())
            values = np.flatnonzero(pixels) + low
            pixels = pixels[values - low]
        else:
            values, pixels = np.unique(raw, return_counts=True)
    return _counts((raw.shape[0], raw.shape[1]), values, pixels, rule)


def _counts(
    size: tuple[int, int], values: np.ndarray, pixels: np.ndarray, rule: LabelRule | None
) -> LabelCounts:
    class_pixels = np.zeros(len(rule.names) if rule else 0, np.int64)
    ignored, wrong = 0, {}
    known = _known(rule) if rule else {}
    for value, count in zip(values.tolist(), pixels.tolist(), strict=True):
        new = known.get(value, UNKNOWN)
        if new == IGNORE_INDEX:
            ignored += count
        elif new != UNKNOWN:
            class_pixels[new] += count
        elif rule is not None:
            wrong[_text(value, rule)] = count
    ordered = dict(sorted(wrong.items(), key=lambda pair: -pair[1]))
    return LabelCounts(size, class_pixels, ignored, ordered, len(values) == 1)


@lru_cache(maxsize=4)
def _known(rule: LabelRule) -> dict[int, int]:
    """Raw value -> class or 255; a negative id is met as its two's complement in 8 and 16 bits, too."""
    pairs = dict(rule.pairs)
    folded = {raw % bits: new for bits in (1 << 16, 1 << 8) for raw, new in rule.pairs if raw < 0}
    return folded | pairs


def _colour(text: str) -> int:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdigit() and int(part) < 256 for part in parts):
        raise DataError(f'labels.palette: {text!r}, expected "R,G,B" with values in 0..255')
    return int(parts[0]) << 16 | int(parts[1]) << 8 | int(parts[2])


def _text(value: int, rule: LabelRule) -> str:
    return f"{value >> 16},{value >> 8 & 255},{value & 255}" if rule.palette else str(value)
