"""Data sets declared in a YAML file (``panoda.data.declaration``), used in place: built-in or one's own.

An item's id is what ``{id}`` matched, after ``group/`` when the pattern has a ``{group}``. Without one the
group is the folder part of the id, or the name of the data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from panoda.config import DeclaredDataset
from panoda.data.dataset import DataError, Encoding, RawItem
from panoda.data.declaration import Declaration, SplitFiles, built_in, read_declaration
from panoda.data.encoding import encoding_of, space_of
from panoda.data.group_lists import check_group_lists, group_of, read_group_lists
from panoda.data.listing import ListedItem, check_ids, read_listing, write_listing
from panoda.data.patterns import LabelFinder, find
from panoda.data.pointer import existing_folder
from panoda.files import sha256_file
from panoda.labels import is_space_file

SHOWN = 3
"""Examples in one message."""


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


def download(dataset: DeclaredDataset, out: Path, *, progress: bool) -> None:
    """Find images and labels of every split and write a pointer to the folder.

    Raises:
        DataError: wrong declaration, no such folder, an empty split, images without labels, ids that occur
            twice, or groups that do not exist.
    """
    declaration = declaration_of(dataset)
    folder = _folder(dataset)
    items: list[ListedItem] = []
    for split, theirs in dataset.splits.items():
        if theirs not in declaration.splits:
            raise DataError(
                f"{declaration.name} has no split {theirs!r}; it has {', '.join(declaration.splits)}"
            )
        check_group_lists(folder, declaration.splits[theirs].group_lists)
        scan = scan_split(folder, declaration, theirs, named=split)
        _check_present(scan, folder, declaration, theirs)
        members = _selected(scan.items, dataset.groups, f"split {theirs} of {folder}")
        if split in dataset.unlabelled:
            members = [_without_label(item) for item in members]
        else:
            _check_paired(Scan(members, scan.labelled), folder, declaration.splits[theirs])
        check_ids(members)
        items += members
    encoding = None
    if declaration.labels is not None:
        encoding_of(declaration.labels, dataset.declaration)
        space = space_of(declaration.labels, dataset.declaration)
        # The digest makes DVC see a change of names or remaps.
        digest = {"sha256": sha256_file(Path(space).expanduser())} if is_space_file(space) else {}
        encoding = {"space": space, **digest}
    facts = {"declaration": declaration.model_dump(mode="json"), "labels": encoding}
    used = [declaration.splits[theirs] for theirs in dataset.splits.values()]
    lists = sorted(
        {name for files in used for name in (files.list_file, *files.group_lists.values()) if name}
    )
    write_listing(out, dataset.path, items, facts=facts, more_files=lists, progress=progress)


def list_items(dataset: DeclaredDataset, raw: Path) -> Iterator[RawItem]:
    """Items in order of split and path (of a list file: in its order), as stage download found them."""
    listing = read_listing(raw)
    declaration = Declaration.model_validate(listing.facts["declaration"])
    return raw_items(declaration, listing.items, listing.folder, name=dataset.declaration)


def raw_items(
    declaration: Declaration, items: Iterable[ListedItem], folder: Path, *, name: str
) -> Iterator[RawItem]:
    """What was found, one by one, with what the declaration says of it.

    Args:
        declaration: Geometry and label encoding.
        items: Images with or without label.
        folder: The data set's folder.
        name: Built-in name or path of the declaration; a label space in a YAML file lies beside it.

    Raises:
        DataError: the label encoding is wrong.
    """
    encoding: Encoding | None = None
    if declaration.labels is not None:
        encoding = encoding_of(declaration.labels, name)
    erp = declaration.projection == "erp"
    nan = float("nan")
    return (
        item.raw_item(
            folder,
            projection=declaration.projection,
            fov_x_deg=declaration.fov_x_deg,
            lat_top_deg=declaration.lat_top_deg if erp else nan,
            lat_bottom_deg=declaration.lat_bottom_deg if erp else nan,
            crop_top=declaration.crop_top,
            crop_bottom=declaration.crop_bottom,
            ignore_bottom=declaration.ignore_bottom,
            encoding=encoding,
        )
        for item in items
    )


def label_space(dataset: DeclaredDataset, raw: Path) -> str | None:
    """Label space of the raw labels; None when no item has a label."""
    listing = read_listing(raw)
    if all(item.label is None for item in listing.items):
        return None
    return str(listing.facts["labels"]["space"])


def declaration_of(dataset: DeclaredDataset) -> Declaration:
    """The declaration that a data set names; DataError when it is missing or wrong."""
    try:
        declaration = read_declaration(dataset.declaration)
    except ValueError as error:
        raise DataError(str(error)) from error
    if declaration.adapter is not None:
        raise DataError(
            f"{declaration.name} needs more than its declaration says: write kind: {declaration.adapter} in "
            "params.yaml (`panoda params data.source.dataset` lists its fields)"
        )
    return declaration


def scan_split(folder: Path, declaration: Declaration, split: str, *, named: str | None = None) -> Scan:
    """Find the images of one split and their labels, without opening any; there may be none.

    What a list file names need not exist.

    Args:
        folder: The data set's folder.
        declaration: What to look for.
        split: Published split name.
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
    used = {item.label for item in scan.items}
    return sorted({m.path for pattern in files.labels for m in find(folder, pattern)} - used - {None})


def _matched(
    folder: Path, declaration: Declaration, files: SplitFiles, *, named: str
) -> Iterator[ListedItem]:
    labels = LabelFinder(folder)
    lists = read_group_lists(folder, files.group_lists)
    found = {match.path: match for pattern in reversed(files.images) for match in find(folder, pattern)}
    for path in sorted(found):
        match = found[path]
        name = match.id if match.group is None else f"{match.group}/{match.id}"
        parent = PurePosixPath(match.id).parent.as_posix()
        group = match.group or (declaration.name if parent == "." else parent)
        if files.group_lists:
            group = group_of(path, lists)
        yield ListedItem(named, name, group, path, labels.find(match, files.labels))


def _listed(
    folder: Path, declaration: Declaration, files: SplitFiles, *, split: str, named: str
) -> Iterator[ListedItem]:
    assert files.list_file is not None
    path = folder / files.list_file
    table = _read_table(path)
    if "split" in table:
        table = table[table["split"] == split]
    seen: set[str] = set()
    for row in table.to_dict("records"):
        image, label = row["image"].strip(), row.get("label", "").strip() or None
        for name in filter(None, (image, label)):
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts:
                raise DataError(f"{path}: {name!r} must be a path below {folder}, relative to it")
        if label is not None and declaration.labels is None:
            raise DataError(f"{path}: has labels, but {declaration.name} declares no section labels")
        if image in seen:
            raise DataError(f"{path}: {image!r} is in the list twice (split {split}); keep one row")
        seen.add(image)
        pure = PurePosixPath(image)
        parent = declaration.name if pure.parent.as_posix() == "." else pure.parent.as_posix()
        name = pure.with_suffix("").as_posix()
        yield ListedItem(named, name, row.get("group", "").strip() or parent, image, label)


def _read_table(path: Path) -> pd.DataFrame:
    """A list file with every cell as text."""
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path).fillna("").astype(str)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such list file; add it or correct list_file in the declaration"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV or parquet list ({error})") from error
    unknown = sorted(set(table.columns) - {"image", "label", "group", "split"})
    if "image" not in table or unknown:
        raise DataError(
            f"{path}: columns {', '.join(map(str, table.columns))}; expected image and, optionally, label, "
            "group and split"
        )
    return table


def _selected(items: list[ListedItem], groups: list[str] | None, where: str) -> list[ListedItem]:
    if groups is None:
        return items
    present = sorted({item.group for item in items})
    missing = sorted(set(groups) - set(present))
    if missing:
        raise DataError(f"{where}: no group {', '.join(missing)}; it has {', '.join(present)}")
    return [item for item in items if item.group in groups]


def _check_present(scan: Scan, folder: Path, declaration: Declaration, split: str) -> None:
    files = declaration.splits[split]
    if not scan.items:
        raise DataError(
            f"{folder}: split {split} of {declaration.name} is empty: no image matches "
            f"{files.list_file or ', '.join(files.images)}; check dataset.path, or the patterns of the "
            "declaration"
        )
    if files.list_file is None:
        return
    table = folder / files.list_file
    for name in (name for item in scan.items for name in (item.image, item.label) if name is not None):
        if not (folder / name).is_file():
            raise DataError(f"{table}: names {name!r}, but {folder / name} is no file; correct the list")


def _check_paired(scan: Scan, folder: Path, files: SplitFiles) -> None:
    missing = scan.unpaired
    if missing:
        examples = ", ".join(str(folder / name) for name in missing[:SHOWN])
        raise DataError(
            f"{len(missing)} of {len(scan.items)} images have no label, such as {examples}; expected "
            f"{' or '.join(files.labels) or f'a label in every row of {files.list_file}'} in {folder}; add "
            "the labels, remove the images, or name the split under unlabelled"
        )


def _without_label(item: ListedItem) -> ListedItem:
    return ListedItem(item.split, item.id, item.group, item.image, None)


def _folder(dataset: DeclaredDataset) -> Path:
    try:
        return existing_folder(dataset.path)
    except DataError as error:
        if dataset.declaration not in built_in():
            raise
        raise DataError(f"{error}; `panoda data get {dataset.declaration}` says how to obtain it") from error
