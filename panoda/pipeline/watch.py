"""What the data sets of params.yaml look like, in a few bytes: ``python -m panoda.pipeline.watch`` for dvc.yaml.

DVC itself does not know ``~``, does not see what lies behind links to folders, ends at a link to nothing, reads
every byte, and takes the path of a YAML file in params.yaml for a text. So `dvc repro` runs this first, every
time. Stage download runs again when a file of the data set's folder is new, gone, of another size or written
to; it, stage preprocess and stage ssl_pretrain, when the content of a file that they are told to read is another.
It checks section data alone, because torch would have to load for the methods' parameters.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from panoda.config import AnyDataset, CityDataset, DataParams, load_params, read_tree
from panoda.data.formats.browse import walk
from panoda.data.formats.declared import files_of
from panoda.pipeline.named_files import label_space_files, tokenizer_file
from panoda.system.errors import DataError
from panoda.system.files import explained_error, read_yaml, sha256_file, staged_directory, write_json

FOLDER = Path(".panoda/watch")
PASSING = (".tmp", ".part", ".pyc", ".DS_Store")
"""Ends of names that come and go by themselves."""


def look(dataset: AnyDataset) -> dict[str, Any]:
    """Number and bytes of the files of a data set, and a digest of their names, sizes and times of change.

    There may be no folder yet; a rendered data set has none.
    """
    total, files, size = hashlib.sha256(), 0, 0
    rendered = isinstance(dataset, CityDataset)
    folder = Path("" if isinstance(dataset, CityDataset) else dataset.path).expanduser()
    for name, cause in walk(folder) if folder.is_dir() and not rendered else ():
        if name.endswith(PASSING):
            continue
        line, files = name, files + 1
        with suppress(OSError):  # removed meanwhile, or missing
            if not cause:
                status = (folder / name).stat()
                line, size = f"{name}\0{status.st_size}\0{status.st_mtime_ns}", size + status.st_size
        total.update(f"{line}\n".encode(errors="surrogateescape"))
    return {"files": files, "bytes": size, "sha256": total.hexdigest()}


def contents(files: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of files, by what they are; a missing one is said by the stage that reads it."""
    found = {what: path.expanduser() for what, path in files.items()}
    return {what: sha256_file(path) if path.is_file() else "missing" for what, path in found.items()}


def write_all(folder: Path = FOLDER) -> None:
    """Write ``<role>.json`` for stage download, ``<role>.named.json`` for preprocess, ``ssl_pretrain.json``."""
    tree = read_tree(Path("params.yaml"))
    try:
        data = DataParams.model_validate(tree.get("data"))
        tokenizer, named = tokenizer_file(tree.get("ssl") or {}), label_space_files(tree["label_space"])
    except (ValidationError, KeyError, AttributeError, TypeError):
        load_params()  # says all that is wrong
        raise
    with staged_directory(folder) as staged:
        write_json(staged / "ssl_pretrain.json", contents(tokenizer))
        for role, domain in data.domains.items():
            try:
                own = contents(files_of(domain.dataset))
            except DataError as error:  # stage download says it, too
                own = {"declaration": str(error)}
            write_json(staged / f"{role}.json", look(domain.dataset) | own)
            write_json(staged / f"{role}.named.json", own | contents(named))


def moved(lock: Path = Path("dvc.lock")) -> str:
    """Why every stage runs again, where dvc.lock was written by a version whose code lay elsewhere; else ""."""
    stages = (read_yaml(lock) or {}).get("stages", {}) if lock.is_file() else {}
    paths = sorted({dep["path"] for stage in stages.values() for dep in stage.get("deps", ())})
    gone = [path for path in paths if path.startswith(("panoda/", "flows/")) and not Path(path).exists()]
    if not gone:
        return ""
    return (
        f"dvc.lock is of an earlier version of panoda, whose code lay elsewhere ({gone[0]}): the stages run again "
        "once (CHANGELOG.md)"
    )


def main() -> None:
    """What dvc.yaml runs."""
    try:
        if why := moved():
            print(why)
        write_all()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {explained_error(error)}")


if __name__ == "__main__":
    main()
