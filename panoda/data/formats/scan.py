"""What lies in the folder of a declared data set: images and labels by pattern or list file, unopened.

An item's id is what ``{id}`` matched, after ``group/`` when the pattern has a ``{group}``. Without one the
group is the folder part of the id, or the name of the data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from panoda.data.formats.browse import LeftOut, left_out
from panoda.data.formats.declaration import Declaration, SplitFiles
from panoda.data.formats.group_lists import group_of, names_of, read_group_lists
from panoda.data.formats.image_lists import read_image_list
from panoda.data.formats.images import is_image_name
from panoda.data.formats.listing import ListedItem
from panoda.data.formats.patterns import LabelFinder, find, match
from panoda.system.errors import DataError


@dataclass(frozen=True)
class Scan:
    """What the patterns or the list of one split find in a folder.

    Attributes:
        items: Every image, in stable order; ``label`` is None where none was found.
        labelled: The split has labels, so ``unpaired`` images are an error.
    """

    items: list[ListedItem]
    labelled: bool

    @property
    def unpaired(self) -> list[str]:
        """Images of a labelled split whose label is missing."""
        return [item.image for item in self.items if item.label is None] if self.labelled else []


def scan_split(folder: Path, declaration: Declaration, split: str, *, named: str | None = None) -> Scan:
    """Find the images of one split and their labels, without opening any; there may be none.

    What a list file names need not exist.

    Args:
        named: Split name that the items get; None = the published one.

    Raises:
        DataError: a wrong pattern or list file.
    """
    files = declaration.splits[split]
    ours = named or split
    if files.list_file is not None:
        items = list(_listed(folder, declaration, files, split=split, named=ours))
        labelled = any(item.label is not None for item in items)
    else:
        items = list(_matched(folder, declaration, files, named=ours))
        labelled = bool(files.labels)
    return Scan(items, labelled)


def has_images(folder: Path, files: SplitFiles) -> bool:
    """Whether any image of a split lies in the folder; stops at the first."""
    if files.list_file is not None:
        return (folder / files.list_file).is_file()
    return any(True for pattern in files.images for _ in find(folder, pattern))


def has_labels(folder: Path, files: SplitFiles) -> bool:
    """Whether any label of a split lies in the folder; True when the split has none, or has a list file."""
    return not files.labels or any(True for pattern in files.labels for _ in find(folder, pattern))


def unused_labels(folder: Path, files: SplitFiles, scan: Scan) -> list[str]:
    """Files that a split's label patterns match and that belong to no image of it, sorted."""
    if files.take_every or files.leave_every:
        return []  # the others belong to the other part
    used = {item.label for item in scan.items}
    return sorted({m.path for pattern in files.labels for m in find(folder, pattern)} - used - {None})


def left_out_of(folder: Path, declaration: Declaration) -> LeftOut:
    """What looks like an image in a data set's folder and belongs to none of its splits.

    Names in group lists that no image has are in it, too.

    Raises:
        DataError: a wrong list file.
    """
    patterns: set[str] = set()
    listed: set[str] = set()
    grouped: set[str] = set()
    lists: dict[str, frozenset[str]] = {}
    for name, files in declaration.splits.items():
        patterns |= {*files.images, *files.labels}
        if files.list_file is not None and (folder / files.list_file).is_file():
            for row in read_image_list(folder / files.list_file):
                if row.split in (None, name):
                    listed |= {row.image, row.label or row.image}
        if files.group_lists:
            grouped |= names_of(found.path for pattern in files.images for found in find(folder, pattern))
            lists |= read_group_lists(folder, {file: file for file in files.group_lists.values()})

    def taken(path: str) -> bool:
        return path in listed or (
            is_image_name(Path(path)) and any(match(pattern, path) for pattern in patterns)
        )

    left = left_out(folder, taken)
    for file, names in lists.items():
        left.add(f"names in {file} that no image has", *sorted(names - grouped))
    return left


def _matched(
    folder: Path, declaration: Declaration, files: SplitFiles, *, named: str
) -> Iterator[ListedItem]:
    labels = LabelFinder(folder)
    lists = read_group_lists(folder, files.group_lists)
    found = {match.path: match for pattern in reversed(files.images) for match in find(folder, pattern)}
    for path in _held_out(sorted(found), files):
        match = found[path]
        name = match.id if match.group is None else f"{match.group}/{match.id}"
        parent = PurePosixPath(match.id).parent.as_posix()
        group = match.group or (declaration.name if parent == "." else parent)
        if files.group_lists:
            group = group_of(path, lists)
        yield ListedItem(named, name, group, path, labels.find(match, files.labels))


def _held_out(paths: list[str], files: SplitFiles) -> list[str]:
    """The part of a split's images that ``take_every`` or ``leave_every`` leaves."""
    if files.take_every:
        paths = paths[files.take_every - 1 :: files.take_every]
    if files.leave_every:
        paths = [path for number, path in enumerate(paths, 1) if number % files.leave_every]
    return paths


def _listed(
    folder: Path, declaration: Declaration, files: SplitFiles, *, split: str, named: str
) -> Iterator[ListedItem]:
    assert files.list_file is not None
    seen: set[str] = set()
    for row in read_image_list(folder / files.list_file):
        if row.split not in (None, split):
            continue
        if row.label is not None and declaration.labels is None:
            raise DataError(f"{row.where}: a label, but {declaration.name} declares no section labels")
        if row.image in seen:
            raise DataError(f"{row.where}: {row.image!r} is in the list twice (split {split}); keep one row")
        seen.add(row.image)
        pure = PurePosixPath(row.image)
        parent = declaration.name if pure.parent.as_posix() == "." else pure.parent.as_posix()
        yield ListedItem(named, pure.with_suffix("").as_posix(), row.group or parent, row.image, row.label)
