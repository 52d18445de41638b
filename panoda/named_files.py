"""The YAML files that params.yaml names (label spaces, declarations): their content is part of a result.

DVC reads a path in params.yaml as a text. So stage ``named_files`` keeps links to the files below
``data/named``, which DVC follows: a change of one runs the stages that use it, wherever it lies.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from panoda.config import Params, load_params
from panoda.data.declared import files_of
from panoda.files import explained_error, staged_directory
from panoda.labels import is_space_file

FOLDER = Path("data/named")
DATASET_STAGES = ("download", "preprocess")
"""Stages that read the files of their data set's section; preprocess reads the label space, too."""


def label_space_files(params: Params) -> dict[str, Path]:
    """The file of the run's label space, if it has one."""
    return {"label_space": Path(params.label_space)} if is_space_file(params.label_space) else {}


def named_files(stage: str, role: str | None, params: Params) -> dict[str, Path]:
    """Files besides its inputs that decide a stage's result: what they are -> path.

    Raises:
        ValueError: a declaration that is missing or wrong.
    """
    if role is None or stage not in DATASET_STAGES:
        return {}
    found = files_of(params.data.domains[role].dataset)
    return found | label_space_files(params) if stage == "preprocess" else found


def link_all(params: Params, folder: Path = FOLDER) -> None:
    """Make the links anew: ``label_space`` and ``datasets/<role>``, empty where nothing is named."""
    with staged_directory(folder) as staged:
        _link(label_space_files(params), staged / "label_space")
        for role in params.data.domains:
            _link(named_files("download", role, params), staged / "datasets" / role)


def _link(files: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for what, path in files.items():
        (folder / f"{what}.yaml").symlink_to(path.expanduser().absolute())


def main() -> None:
    """What dvc.yaml runs."""
    try:
        link_all(load_params())
    except (ValueError, OSError) as error:
        print(f"error: {explained_error(error)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
