"""Checking a raw data set: every file is read once, on all cores, and everything wrong is counted and shown.

Images and labels are decoded as preparation decodes them, so what passes here can be prepared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.data.check.survey import Survey, take_survey
from panoda.data.formats.browse import LeftOut
from panoda.data.formats.dataset import RawItem
from panoda.data.formats.decode import decode, ignore_black
from panoda.data.formats.gpano import contradiction, read_facts
from panoda.data.formats.images import read_upright
from panoda.data.formats.orientation import DoubtfulOrientationError, OtherSizeError, upright_label
from panoda.data.prepare.plausible import doubts, known_ids
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError
from panoda.system.files import sha256_file
from panoda.system.machine import cores
from panoda.system.progress import progress_bar

COUNT, NO_LABEL, NO_IMAGE = "other number of images", "image without label", "label without image"
UNREADABLE_IMAGE, UNREADABLE_LABEL = "unreadable image", "unreadable label"
IMAGE_SIZE, LABEL_SIZE, VALUES = "other size than published", "label of another size", "label values"
DOUBTFUL = "orientation in doubt"
GEOMETRY = "not the declared part of the sphere"
SAME_IMAGE, SAME_LABEL, SHARED_ID = "same image twice", "same label twice", "same id twice"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: One of the constants of this module.
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
        classes: Class names; empty without labels.
        splits: Counts by split.
        problems: Everything wrong, in the order of the items.
        left_out: What looks like an image and was not looked at.
        doubts: What is suspicious about labels that are not wrong, a sentence each.
    """

    name: str
    classes: tuple[str, ...] = ()
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    left_out: LeftOut | None = None
    doubts: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def counts(self) -> Counter[str]:
        """Number of problems by kind."""
        return Counter(problem.kind for problem in self.problems)


@dataclass(frozen=True)
class _Facts:
    """What one worker learned of one item; (256,) pixels of every id, None without label; value -> wrong pixels."""

    image_sha: str
    label_sha: str
    pixels: np.ndarray | None
    wrong: dict[str, int]
    problems: list[Problem]


def check_dataset(
    name: str, folder: Path, *, workers: int | None = None, progress: bool = False
) -> CheckReport:
    """Check the files of a data set (a built-in name, or the path of a declaration) in a folder, read only.

    ``workers`` are threads; None = one for each core.

    Raises:
        DataError: no such folder, or a wrong encoding, pattern or list file. Wrong files are reported, not
            raised.
        ValueError: no such declaration, or a wrong one.
    """
    return check_survey(take_survey(name, folder), workers=workers, progress=progress)


def check_survey(survey: Survey, *, workers: int | None = None, progress: bool = False) -> CheckReport:
    """Check what a survey found; the report says what is wrong, nothing is raised for it."""
    report = CheckReport(name=survey.name, classes=survey.classes, left_out=survey.left_out)
    for split in {**survey.expected, **dict.fromkeys(item.split for item in survey.items)}:
        pixels = np.zeros(len(report.classes), np.int64)
        report.splits[split] = SplitReport(expected=survey.expected.get(split), class_pixels=pixels)
    # Splits may overlap: a file is read once.
    unique = list({(item.image, item.label): item for item in reversed(survey.items)}.values())[::-1]
    seen = _Seen(report, survey.items)
    job = partial(_look_at, sizes=survey.sizes)
    with progress_bar(enabled=progress) as bar:
        task = bar.add_task(f"checking {survey.name}", total=len(unique))
        for item, facts in zip(unique, _results(job, unique, workers), strict=True):
            seen.add(item, facts)
            bar.advance(task)
    _compare_counts(report, survey)
    report.doubts = _doubts(report, survey)
    return report


# --- one item ------------------------------------------------------------------------------------------


def _look_at(item: RawItem, *, sizes: dict[str, tuple[int, int] | None]) -> _Facts:
    """Read the image and label of an item."""
    problems: list[Problem] = []

    def wrong(kind: str, path: Path, detail: str, value: int | None = None) -> None:
        problems.append(Problem(kind, item.split, str(path), detail, value))

    image: Image.Image | None = None
    ids: np.ndarray | None = None
    unknown: dict[str, int] = {}
    image_sha = label_sha = ""
    orientation = 1
    size = sizes.get(item.split)
    try:
        image_sha = sha256_file(item.image)
        image, orientation = read_upright(item.image)
        facts = read_facts(item.image)
        if facts is not None and (why := contradiction(facts, item)):
            wrong(GEOMETRY, item.image, why)
        if size and (image.height, image.width) != tuple(size):
            wrong(IMAGE_SIZE, item.image, f"{_by((image.height, image.width))}, published {_by(size)}")
    except (DataError, OSError) as error:
        wrong(UNREADABLE_IMAGE, item.image, _reason(error, item.image))
    if item.label is None:
        return _Facts(image_sha, label_sha, None, {}, problems)
    try:
        label_sha = sha256_file(item.label)
        assert item.encoding is not None  # as every survey says
        stored = decode(item.label, item.encoding)
        ids, unknown = stored.ids, stored.wrong
        if image is not None:
            ids = upright_label(item, ids, stored.orientation, image, orientation)
            if item.encoding.black_is_void:
                ignore_black(ids, image)
    except (OtherSizeError, DoubtfulOrientationError) as error:
        kind = LABEL_SIZE if isinstance(error, OtherSizeError) else DOUBTFUL
        wrong(kind, item.label, _reason(error, item.label))
    except (DataError, OSError) as error:
        wrong(UNREADABLE_LABEL, item.label, _reason(error, item.label))
    if unknown and item.encoding is not None and item.encoding.others == "error":
        first = ", ".join(f"{value} ({pixels} pixels)" for value, pixels in list(unknown.items())[:10])
        wrong(VALUES, item.label, f"outside the encoding: {first}", sum(unknown.values()))
    # Pillow counts bytes several times faster than NumPy.
    pixels = None if ids is None else np.array(Image.fromarray(ids).histogram(), np.int64)
    return _Facts(image_sha, label_sha, pixels, unknown, problems)


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]} (height x width)"


def _results(job: partial[_Facts], items: Sequence[RawItem], workers: int | None) -> Iterator[_Facts]:
    """Results in order."""
    # Decoding and hashing release the interpreter lock, so threads share the cores.
    pool = ThreadPoolExecutor(workers or cores())
    try:
        yield from pool.map(job, items)
    finally:
        # After ctrl-C the rest of the data set is not read.
        pool.shutdown(cancel_futures=True)


# --- all items -----------------------------------------------------------------------------------------


class _Seen:
    """Adds up items and finds what is there twice."""

    def __init__(self, report: CheckReport, items: Sequence[RawItem]) -> None:
        self.report = report
        self.first: dict[tuple[str, object], tuple[Path, str]] = {}
        self.members: dict[tuple[Path, Path | None], list[RawItem]] = {}
        for item in items:
            self.members.setdefault((item.image, item.label), []).append(item)

    def add(self, item: RawItem, facts: _Facts) -> None:
        self.report.problems += facts.problems
        for member in self.members[item.image, item.label]:
            self._twice(SHARED_ID, (member.split, member.id), member, member.image)
            self._add_to(self.report.splits[member.split], facts)
        if facts.image_sha:
            self._twice(SAME_IMAGE, facts.image_sha, item, item.image)
        # Labels of one value are alike without being copies.
        if item.label is not None and facts.pixels is not None and np.count_nonzero(facts.pixels) > 1:
            self._twice(SAME_LABEL, facts.label_sha, item, item.label)

    @staticmethod
    def _add_to(split: SplitReport, facts: _Facts) -> None:
        split.images += 1
        if facts.pixels is None:
            return
        split.labels += 1
        split.class_pixels += facts.pixels[: len(split.class_pixels)]
        split.ignored += int(facts.pixels[IGNORE_INDEX]) - sum(facts.wrong.values())
        for value, pixels in facts.wrong.items():
            before = split.wrong.get(value, (0, 0))
            split.wrong[value] = (before[0] + pixels, before[1] + 1)

    def _twice(self, kind: str, key: object, item: RawItem, path: Path) -> None:
        other, split = self.first.setdefault((kind, key), (path, item.split))
        if other != path:
            what = f"id {item.id}" if kind == SHARED_ID else "the bytes"
            detail = f"{what} of {other} (split {split})"
            self.report.problems.append(Problem(kind, item.split, str(path), detail))


def _compare_counts(report: CheckReport, survey: Survey) -> None:
    for name, split in report.splits.items():
        if split.expected is not None and split.images != split.expected:
            detail = f"{split.images} images, published are {split.expected}"
            report.problems.append(Problem(COUNT, name, "", detail, split.images))
        elif not split.images:
            report.problems.append(Problem(COUNT, name, "", "no images", 0))
    report.problems += _unpaired(NO_LABEL, survey.without_label, "no label where it should be")
    report.problems += _unpaired(NO_IMAGE, survey.without_image, "belongs to no image")


def _doubts(report: CheckReport, survey: Survey) -> list[str]:
    """Suspicious labels: classes over all splits, what is ignored split by split.

    Splits with values outside the encoding are left out: these are to be corrected first.
    """
    encodings = {item.encoding for item in survey.items if item.label is not None}
    labelled = {name: split for name, split in report.splits.items() if split.labels and not split.wrong}
    if not labelled:
        return []
    known = set().union(*(known_ids(encoding, len(report.classes)) for encoding in encodings))
    pixels = sum(split.class_pixels for split in labelled.values())
    images = sum(split.labels for split in labelled.values())
    look = partial(doubts, names=report.classes, possible=known, in_part=False)
    found = look(np.asarray(pixels), 0, images)
    for name, split in labelled.items():
        more = look(split.class_pixels, split.ignored, split.labels, missing=False)
        found += [f"{name}: {doubt}" for doubt in more if doubt not in found]
    return found


def _unpaired(kind: str, paths: Iterable[tuple[str, Path]], detail: str) -> Iterator[Problem]:
    for split, path in paths:
        yield Problem(kind, split, str(path), detail)
