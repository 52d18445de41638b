"""Data sets declared in a YAML file (``panoda.data.formats.declaration``), used in place: built-in or one's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from panoda.config import AnyDataset, DeclaredDataset
from panoda.data.formats.browse import warn_left_out
from panoda.data.formats.dataset import RawItem
from panoda.data.formats.declaration import Declaration, SplitFiles, built_in, read_declaration
from panoda.data.formats.encoding import encoding_of, space_of
from panoda.data.formats.group_lists import check_group_lists
from panoda.data.formats.listing import (
    ListedItem,
    Listing,
    check_ids,
    existing_folder,
    read_listing,
    write_listing,
)
from panoda.data.formats.scan import Scan, left_out_of, scan_split
from panoda.labels import is_space_file
from panoda.system.errors import DataError
from panoda.system.files import sha256_file

SHOWN = 3
"""Examples in one message."""


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
            members = [replace(item, label=None) for item in members]
        else:
            _check_paired(Scan(members, scan.labelled), folder, declaration.splits[theirs])
        check_ids(members)
        items += members
    warn_left_out(left_out_of(folder, declaration))
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
    return raw_items(declaration, listing, name=dataset.declaration)


def raw_items(declaration: Declaration, listing: Listing, *, name: str) -> Iterator[RawItem]:
    """What was found, with what the declaration says of it.

    Args:
        name: Built-in name or path of the declaration; a label space in a YAML file lies beside it.

    Raises:
        DataError: the label encoding is wrong.
    """
    erp = declaration.projection == "erp"
    return listing.raw_items(
        projection=declaration.projection,
        fov_x_deg=declaration.fov_x_deg,
        lat_top_deg=declaration.lat_top_deg if erp else math.nan,
        lat_bottom_deg=declaration.lat_bottom_deg if erp else math.nan,
        crop_top=declaration.crop_top,
        crop_bottom=declaration.crop_bottom,
        ignore_bottom=declaration.ignore_bottom,
        encoding=None if declaration.labels is None else encoding_of(declaration.labels, name),
        orientation=declaration.orientation,
    )


def label_space(dataset: DeclaredDataset, raw: Path) -> str | None:
    """Label space of the raw labels; None when no item has a label."""
    listing = read_listing(raw)
    if all(item.label is None for item in listing.items):
        return None
    return str(listing.facts["labels"]["space"])


def files_of(dataset: AnyDataset) -> dict[str, Path]:
    """The user's YAML files that a section names: declaration and its label space.

    Raises:
        DataError: the declaration is missing or wrong.
    """
    if not isinstance(dataset, DeclaredDataset) or dataset.declaration in built_in():
        return {}
    labels = declaration_of(dataset).labels
    space = "" if labels is None else space_of(labels, dataset.declaration)
    own = {"declared_space": Path(space)} if is_space_file(space) else {}
    return {"declaration": Path(dataset.declaration), **own}


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


def _folder(dataset: DeclaredDataset) -> Path:
    try:
        return existing_folder(dataset.path)
    except DataError as error:
        if dataset.declaration not in built_in():
            raise
        raise DataError(f"{error}; `panoda data get {dataset.declaration}` says how to obtain it") from error
