"""Checking a raw data set: every file is read once, on all cores, and everything wrong is counted and shown.

Images are decoded as preparation decodes them, so what passes here can be prepared. A label is only counted:
one look-up gives class shares and the values that its encoding does not know.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from panoda.data.dataset import DataError, RawItem
from panoda.data.declaration import Declaration, LabelEncoding
from panoda.data.images import read_rgb
from panoda.data.inventory import Inventory, take_inventory
from panoda.data.label_counts import LabelCounts, LabelRule, count_label, label_rule
from panoda.files import sha256_file
from panoda.progress import progress_bar

COUNT, NO_LABEL, NO_IMAGE = "other number of images", "image without label", "label without image"
UNREADABLE_IMAGE, UNREADABLE_LABEL = "unreadable image", "unreadable label"
IMAGE_SIZE, LABEL_SIZE, VALUES = "other size than published", "label of another size", "label values"
SAME_IMAGE, SAME_LABEL, SHARED_ID = "same image twice", "same label twice", "same id twice"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: One of the constants of this module.
        split: Split name.
        path: The file, or the folder of a wrong count.
        detail: What was found and expected.
        value: Number that goes with it (images found, pixels of wrong values), where there is one.
    """

    kind: str
    split: str
    path: str
    detail: str
    value: int | None = None


@dataclass
class SplitReport:
    """Counts of one split.

    Attributes:
        images: Images found.
        expected: Published number, if known.
        labels: Labels found.
        class_pixels: (K,) int64 pixels of each class; empty without labels.
        ignored: Pixels that mean unlabelled.
        wrong: Value outside the encoding -> (pixels, files).
    """

    images: int = 0
    expected: int | None = None
    labels: int = 0
    class_pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    wrong: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        name: Of the data set.
        classes: Class names; empty without labels.
        splits: Counts by split.
        problems: Everything wrong, in the order of the items.
    """

    name: str
    classes: tuple[str, ...] = ()
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def counts(self) -> Counter[str]:
        """Number of problems by kind."""
        return Counter(problem.kind for problem in self.problems)


@dataclass(frozen=True)
class _Facts:
    """What one worker learned of one item: small, as processes send it back."""

    size: tuple[int, int] | None
    image_sha: str
    label_sha: str
    label: LabelCounts | None
    problems: tuple[Problem, ...]


def check_dataset(
    declaration: Declaration, folder: Path, *, workers: int | None = None, progress: bool = False
) -> CheckReport:
    """Check the files of a declared data set.

    Args:
        declaration: Where files are, what they should be.
        folder: The data set's folder, read only.
        workers: Threads; None = one for each core.
        progress: Show progress on a terminal.

    Raises:
        DataError: no such folder, or a wrong declaration. Wrong files are reported, not raised.
    """
    inventory = take_inventory(declaration, folder)
    return check_items(
        inventory.items,
        name=declaration.name,
        labels=declaration.labels,
        size=declaration.size,
        expected={name: split.expected for name, split in declaration.splits.items()},
        inventory=inventory,
        workers=workers,
        progress=progress,
    )


def check_items(
    items: Sequence[RawItem],
    *,
    name: str = "",
    labels: LabelEncoding | None = None,
    size: tuple[int, int] | None = None,
    expected: Mapping[str, int | None] | None = None,
    inventory: Inventory | None = None,
    workers: int | None = None,
    processes: bool = False,
    progress: bool = False,
) -> CheckReport:
    """Check raw items of any adapter.

    Args:
        items: What the adapter's ``list_items`` returned.
        name: Of the data set, for the report.
        labels: Meaning of label values; None = labels are only decoded.
        size: Published height and width in pixels.
        expected: Published number of images by split.
        inventory: Labels without image and images without label, when the lister knows.
        workers: Threads (or processes); None = one for each core.
        processes: Processes in place of threads; they start slowly and pay on many cores only.
        progress: Show progress on a terminal.

    Returns:
        The report; it says what is wrong, this function does not raise for it.
    """
    rule = label_rule(labels) if labels is not None else None
    report = CheckReport(name=name, classes=rule.names if rule else ())
    for split in {**(expected or {}), **dict.fromkeys(item.split for item in items)}:
        pixels = np.zeros(len(report.classes), np.int64)
        report.splits[split] = SplitReport(expected=(expected or {}).get(split), class_pixels=pixels)
    seen = _Seen(report)
    job = partial(_look_at, rule=rule, size=size)
    with progress_bar(enabled=progress) as bar:
        task = bar.add_task(f"checking {name}", total=len(items))
        for item, facts in zip(items, _results(job, items, workers, processes=processes), strict=True):
            seen.add(item, facts)
            bar.advance(task)
    _compare_counts(report, inventory)
    return report


# --- one item ------------------------------------------------------------------------------------------


def _look_at(item: RawItem, *, rule: LabelRule | None, size: tuple[int, int] | None) -> _Facts:
    """Read the image and label of an item."""
    problems: list[Problem] = []

    def wrong(kind: str, path: Path, detail: str, value: int | None = None) -> None:
        problems.append(Problem(kind, item.split, str(path), detail, value))

    found: tuple[int, int] | None = None
    image_sha = label_sha = ""
    try:
        image_sha = sha256_file(item.image)
        image = read_rgb(item.image)
        found = (image.height, image.width)
    except (DataError, OSError) as error:
        wrong(UNREADABLE_IMAGE, item.image, _reason(error, item.image))
    if found and size and found != tuple(size):
        wrong(IMAGE_SIZE, item.image, f"{_by(found)}, published {_by(size)}")
    counts = None
    if item.label is not None:
        try:
            label_sha = sha256_file(item.label)
            counts = count_label(item.label, rule)
        except (DataError, OSError) as error:
            wrong(UNREADABLE_LABEL, item.label, _reason(error, item.label))
    if counts is not None and item.label is not None:
        if found and counts.size != found:
            wrong(LABEL_SIZE, item.label, f"{_by(counts.size)}, its image has {_by(found)}")
        if counts.wrong and rule is not None and not rule.others_ignored:
            listed = ", ".join(
                f"{value} ({pixels} pixels)" for value, pixels in list(counts.wrong.items())[:10]
            )
            wrong(VALUES, item.label, f"outside the encoding: {listed}", sum(counts.wrong.values()))
    return _Facts(found, image_sha, label_sha, counts, tuple(problems))


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} (height x width)"


def _results(
    job: partial[_Facts], items: Sequence[RawItem], workers: int | None, *, processes: bool
) -> Iterator[_Facts]:
    """Results in order; in this process when there is one worker."""
    count = min(workers or len(os.sched_getaffinity(0)), max(len(items), 1))
    if count == 1:
        yield from map(job, items)
        return
    with _pool(count, processes=processes) as pool:
        chunk = max(1, min(16, len(items) // (4 * count)))
        yield from pool.map(job, items, chunksize=chunk)


@contextmanager
def _pool(count: int, *, processes: bool) -> Iterator[Executor]:
    # Decoding and hashing release the interpreter lock, so threads share the cores. forkserver: a fork of a
    # process with threads may hang.
    pool: Executor = (
        ProcessPoolExecutor(count, mp_context=get_context("forkserver"))
        if processes
        else ThreadPoolExecutor(count)
    )
    try:
        yield pool
    finally:
        # After ctrl-C the rest of the data set is not read.
        pool.shutdown(cancel_futures=True)


# --- all items -----------------------------------------------------------------------------------------


class _Seen:
    """Adds up items and finds what is there twice."""

    def __init__(self, report: CheckReport) -> None:
        self.report = report
        self.images: dict[str, RawItem] = {}
        self.labels: dict[str, RawItem] = {}
        self.ids: dict[tuple[str, str], RawItem] = {}

    def add(self, item: RawItem, facts: _Facts) -> None:
        split = self.report.splits[item.split]
        split.images += 1
        self.report.problems += facts.problems
        self._twice(SHARED_ID, self.ids, (item.split, item.id), item, item.image)
        if facts.image_sha:
            self._twice(SAME_IMAGE, self.images, facts.image_sha, item, item.image)
        if item.label is None or facts.label is None:
            return
        split.labels += 1
        # Labels of one value are alike without being copies.
        if not facts.label.uniform:
            self._twice(SAME_LABEL, self.labels, facts.label_sha, item, item.label)
        if len(facts.label.class_pixels):
            split.class_pixels += facts.label.class_pixels
        split.ignored += facts.label.ignored
        for value, pixels in facts.label.wrong.items():
            before = split.wrong.get(value, (0, 0))
            split.wrong[value] = (before[0] + pixels, before[1] + 1)

    def _twice(self, kind: str, known: dict, key: object, item: RawItem, path: Path) -> None:
        first = known.setdefault(key, item)
        if first is not item:
            other = first.label if kind == SAME_LABEL else first.image
            what = f"id {item.id}" if kind == SHARED_ID else "the bytes"
            detail = f"{what} of {other} (split {first.split})"
            self.report.problems.append(Problem(kind, item.split, str(path), detail))


def _compare_counts(report: CheckReport, inventory: Inventory | None) -> None:
    for name, split in report.splits.items():
        if split.expected is not None and split.images != split.expected:
            detail = f"{split.images} images, published are {split.expected}"
            report.problems.append(Problem(COUNT, name, "", detail, split.images))
    if inventory is not None:
        report.problems += _unpaired(NO_LABEL, inventory.without_label, "no label where the patterns say")
        report.problems += _unpaired(NO_IMAGE, inventory.without_image, "belongs to no image")


def _unpaired(kind: str, paths: Iterable[tuple[str, Path]], detail: str) -> Iterator[Problem]:
    for split, path in paths:
        yield Problem(kind, split, str(path), detail)
