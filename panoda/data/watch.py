"""What a data set's folder looks like, in a few bytes: ``python -m panoda.data.watch ROLE`` for dvc.yaml.

DVC itself does not know ``~``, does not see what lies behind links to folders, ends at a link to nothing and
reads every byte. So `dvc repro` runs this first, every time, and stage download when the outcome differs:
when a file of the folder, the declaration or its label space is new, gone, of another size or written to.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from panoda.config import AnyDataset, CityDataset, DeclaredDataset, load_params
from panoda.data.browse import walk
from panoda.data.dataset import DataError
from panoda.data.declaration import built_in
from panoda.data.declared import declaration_of
from panoda.data.encoding import space_of
from panoda.files import explained_error, write_json
from panoda.labels import is_space_file

FOLDER = Path(".panoda/watch")
PASSING = (".tmp", ".part", ".pyc", ".DS_Store")
"""Ends of names that come and go by themselves."""


def look(dataset: AnyDataset) -> dict[str, Any]:
    """Number and bytes of the files of a data set, and a digest of their names, sizes and times of change.

    There may be no folder yet; a rendered data set has none.
    """
    total, files, size = hashlib.sha256(), 0, 0
    for line, count in _lines(dataset):
        total.update(line.encode(errors="surrogateescape"))
        files, size = files + 1, size + count
    return {"files": files, "bytes": size, "sha256": total.hexdigest()}


def _lines(dataset: AnyDataset) -> Iterator[tuple[str, int]]:
    """(name, size and time, bytes) of every file."""
    if isinstance(dataset, CityDataset):
        return
    folder = Path(dataset.path).expanduser()
    if folder.is_dir():
        for name, cause in walk(folder):
            if not name.endswith(PASSING):
                yield _line(name, None if cause else folder / name)
    if isinstance(dataset, DeclaredDataset):
        for name in own_files(dataset):
            yield _line(name, Path(name).expanduser())


def _line(name: str, path: Path | None) -> tuple[str, int]:
    try:
        status = path.stat() if path is not None else None
    except OSError:  # removed meanwhile, or missing
        status = None
    if status is None:
        return f"{name}\n", 0
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n", status.st_size


def own_files(dataset: DeclaredDataset) -> list[str]:
    """The user's YAML files: the declaration and its label space."""
    if dataset.declaration in built_in():
        return []
    try:
        labels = declaration_of(dataset).labels
    except DataError:  # stage download says what is wrong
        return [dataset.declaration]
    spaces = [] if labels is None else [space_of(labels, dataset.declaration)]
    return [dataset.declaration, *filter(is_space_file, spaces)]


def main(role: str) -> None:
    """Write ``.panoda/watch/ROLE.json``."""
    try:
        domains = load_params().data.domains
        if role not in domains:
            raise ValueError(f"{role}: no domain of section data; there are {', '.join(domains)}")
        write_json(FOLDER / f"{role}.json", look(domains[role].dataset))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {explained_error(error)}")


if __name__ == "__main__":
    main(sys.argv[1])
