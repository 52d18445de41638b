"""An empty project in which data sets are got, checked and prepared as users do; miniature trees fit it."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import command_line
import pandas as pd
import pytest
import yaml
from miniature import SIZE

from panoda.config import DomainParams
from panoda.data.check import survey
from panoda.data.formats import declaration as declarations
from panoda.data.loading.prepared import PreparedSplit
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.system.context import RunContext

PUBLISHED = declarations.BUILT_IN
COUNTS: dict[str, dict[str, int]] = {
    "cityscapes": {"train": 4, "val": 2, "test": 1},
    "densepass": {"train": 4, "val": 4},
    "synpass": {"train": 2, "val": 2, "test": 2},
    "camvid": {"train": 2, "val": 2, "test": 2},
    "camvid32": {"all": 2, "0001TP": 1, "Seq05VD": 1},
    "ade20k": {"train": 4, "val": 4},
    "cvrg_pano": {"all": 2, "test": 1},
    "stanford2d3d": {f"area_{area} panoramic": 1 for area in ("1", "2", "3", "4", "5a", "5b", "6")},
    "structured3d": {"all": 6},
}


def make_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder, now the current one; the built-in sets are as large as the miniature trees."""
    for name, counts in COUNTS.items():
        tree = published(name)
        size = None if tree.get("size") is None else list(SIZE)
        splits = {split: {**tree["splits"][split], "expected": n} for split, n in counts.items()}
        declare(tmp_path / "declarations", {**tree, "size": size, "splits": splits})
    monkeypatch.setattr(declarations, "BUILT_IN", tmp_path / "declarations")
    monkeypatch.setattr(survey, "STANFORD_SIZES", {"panoramic": SIZE, "pinhole": SIZE})
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "project"


def published(name: str) -> dict:
    """A built-in declaration as it is shipped."""
    return yaml.safe_load((PUBLISHED / f"{name}.yaml").read_text(encoding="utf-8"))


def declared(name: str) -> dict:
    """A built-in declaration of the project."""
    return yaml.safe_load((declarations.BUILT_IN / f"{name}.yaml").read_text(encoding="utf-8"))


def declare(folder: Path, tree: dict) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def panoda(*arguments: str) -> tuple[int, str]:
    """Exit status and output of `panoda data`."""
    return command_line.panoda("data", *arguments)


def problems(name: str) -> Counter[str]:
    """Check a data set in its default folder: kind -> number of problems."""
    status, text = panoda("check", name, "--out", "report.parquet")
    table = pd.read_parquet("report.parquet")
    facts = {"images", "labels", "class", "ignored", "label value", "left out"}
    kinds = Counter(kind for kind in table["kind"] if kind not in facts)
    assert status == (1 if kinds else 0) and ("nothing wrong" in text) == (not kinds), text
    return kinds


def prepare(
    dataset: dict[str, object], label_space: str, *, role: str = "source"
) -> dict[str, PreparedSplit]:
    """Stages download and preprocess of a data set section, in the size of the miniature trees."""
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    domain = DomainParams.model_validate({"folder": "source", "dataset": dataset, "prepare": sizes})
    raw, out = Path("data/raw", role), Path("data/prepared", role)
    download(role=role, dataset=domain.dataset, out=raw, progress=False)
    preprocess(role=role, raw=raw, out=out, domain=domain, label_space=label_space, context=RunContext())
    return {path.name: PreparedSplit(path) for path in out.iterdir() if path.is_dir()}


def zipped(tree: Path, *, below: str = "", only: Callable[[str], bool] = lambda name: True) -> bytes:
    """A zip of the files of a tree whose relative names are wanted, in a folder ``below``."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as out:
        for path in sorted(tree.rglob("*")):
            name = path.relative_to(tree).as_posix()
            if path.is_file() and only(name):
                out.write(path, below + name)
    return body.getvalue()
