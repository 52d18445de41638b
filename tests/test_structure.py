"""The house keeps its shape: import directions, stages as dvc.yaml, prefect.yaml and the flows say."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from import_closure import PACKAGE, import_closure
from pydantic import BaseModel

from panoda import config
from panoda.config import DataParams, load_params, params_model
from panoda.pipeline.table import STAGES, Stage
from panoda.pipeline.write import written_files

ROOT = Path(__file__).resolve().parents[1]
# Who may import whom: a file imports from its own level and from those above it in this list.
LEVELS = (
    ("system", "labels", "geometry"),
    ("config",),
    (
        "city",
        "models/core",
        "models/deform",
        "models/decoders",
        "models/encoders",
        "models/weights",
        "models",
    ),
    ("data/formats",),
    ("data/acquire", "data/loading"),
    ("data/prepare",),
    ("data/check", "data"),
    ("inference",),
    ("engine",),
    ("methods",),
    ("evaluation", "deployment", "classification", "annotation"),
    ("report",),
    ("stages",),
    ("pipeline", "tracking"),
    ("cli",),
    ("__main__",),
)


def python_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(parts: tuple[str, ...]) -> str:
    """The room of a file below panoda/: a folder, or a folder of data/ or models/."""
    parts = tuple(part.removesuffix(".py") for part in parts)
    inner = "/".join(parts[:2])
    return inner if any(inner in rooms for rooms in LEVELS) else parts[0]


def level(name: str) -> int:
    found = [i for i, rooms in enumerate(LEVELS) if name in rooms]
    assert found, f"panoda/{name} has no place in tests/test_structure.py; give it one"
    return found[0]


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    own = room(path.relative_to(PACKAGE).parts)
    if own == "__init__":
        return
    for name in imports(path):
        if name.startswith("flows"):
            assert own == "cli", f"{path.name} imports {name}; only the command line knows the flows"
        if name.startswith("panoda.") and name != "panoda.__version__":
            other = room(tuple(name.split(".")[1:]))
            assert level(other) <= level(own), (
                f"panoda/{own} must not import panoda/{other} ({path.name}: {name})"
            )


def test_the_page_draws_the_levels() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    lines = [line for line in page.split("```")[1].splitlines() if line[:1].strip()]
    drawn = [set(line.split("  ")[0].split(", ")) for line in lines if not line.startswith("flows")]
    # The rooms of models/ share its line; data/ itself and __main__ hold nothing.
    left_out = {room for rooms in LEVELS for room in rooms if room.startswith("models/")}
    levels = [set(rooms) - left_out - {"data", "__main__"} for rooms in reversed(LEVELS)]
    assert drawn == [rooms for rooms in levels if rooms]


@pytest.mark.parametrize("tool", ["mlflow", "prefect", "dvc"])
def test_tools_are_imported_in_one_place(tool: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in [*python_files(PACKAGE), *python_files(ROOT / "flows")]
        if any(name == tool or name.startswith(f"{tool}.") for name in imports(path))
    }
    if tool == "mlflow":
        assert users and all(user.startswith("panoda/tracking/") for user in users)
    elif tool == "prefect":
        assert users and all(user.startswith("flows/") for user in users)
    else:
        assert not users, "DVC is a command line to this project"


@pytest.fixture(scope="module")
def pipeline() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def definition(pipeline: dict[str, Any], stage: Stage) -> dict[str, Any]:
    entry = pipeline["stages"][stage.name]
    return entry["do"] if stage.per_role else entry


@pytest.mark.parametrize("path", written_files(), ids=str)
def test_files_written_from_the_table_are_up_to_date(path: Path) -> None:
    found = (ROOT / path).read_text(encoding="utf-8")
    assert found == written_files()[path], f"{path} differs from the table of stages: run `make pipeline`"


BY_NAME = ("models/decoders/", "models/beit.py", "models/mae.py", "models/tokenizer.py", "methods/")
"""Rooms whose files are imported when a parameter names them, and what such a file alone imports."""


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_the_code_of_a_stage_is_all_that_it_imports(stage: Stage) -> None:
    paths = {path.as_posix() for path in stage.code_paths(load_params(ROOT / "params.yaml"))}
    assert all((ROOT / path).exists() for path in paths)
    files = import_closure(stage.module, registries=stage.per_role)
    needed = {"panoda/" + p.relative_to(PACKAGE).as_posix() for p in files if not is_bare(p)}
    if stage.name == "preprocess":  # only `download` of the city renders
        needed = {f for f in needed if not f.startswith("panoda/city/")}
    missing = sorted(f for f in needed if not any(f == d or f.startswith(f"{d}/") for d in paths))
    assert not missing, f"stage {stage.name}: add to its code in panoda/pipeline/table.py: {missing}"
    idle = sorted(d for d in paths if not any(f == d or f.startswith(f"{d}/") for f in needed))
    idle = [d for d in idle if not d.startswith(tuple(f"panoda/{room}" for room in BY_NAME))]
    assert not idle, f"stage {stage.name}: remove from its code in panoda/pipeline/table.py: {idle}"


def is_bare(path: Path) -> bool:
    """An ``__init__.py`` without behaviour: a docstring, names from elsewhere; the package's own."""
    if path == PACKAGE / "__init__.py" or path.name != "__init__.py":
        return path.name == "__init__.py"
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(n, ast.Expr | ast.Assign | ast.ImportFrom) for n in nodes)


def test_modules_imported_by_name_are_part_of_a_stages_code() -> None:
    users = {
        p.relative_to(PACKAGE).as_posix()
        for p in python_files(PACKAGE)
        if "import_module(" in p.read_text(encoding="utf-8")
    }
    # exported.py imports libraries alone by name, nothing of this package.
    users.discard("deployment/exported.py")
    assert users == {
        *("__init__.py", "data/formats/dataset.py", "models/core/decoders.py"),
        *("config/methods.py", "engine/method.py"),
    }


def test_target_labels_reach_evaluation_alone(pipeline: dict[str, Any]) -> None:
    for stage in STAGES.values():
        deps = definition(pipeline, stage)["deps"]
        labelled = [d for d in deps if d.startswith("data/prepared/target") and not d.endswith("/train")]
        assert bool(labelled) == (stage.name == "evaluate"), (stage.name, labelled)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_flow_parameters_are_the_stages_sections(stage: Stage) -> None:
    flow = getattr(importlib.import_module(f"flows.{stage.name}"), stage.name)
    names = set(inspect.signature(flow.fn).parameters)
    sections = set(stage.flow_sections)
    assert names == sections | {"runtime", "tracking", "job"} | ({"role"} if stage.per_role else set())
    hints = inspect.get_annotations(flow.fn, eval_str=True)
    for name in sections:
        kind = params_model().model_fields[name].annotation
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        assert set(kinds) <= set(hints[name].__args__)


def models() -> list[type[BaseModel]]:
    found = [v for v in vars(config).values() if inspect.isclass(v) and issubclass(v, config.Section)]
    return [m for m in found if m is not config.Section]


@pytest.mark.parametrize("model", models(), ids=lambda m: m.__name__)
def test_every_parameter_is_documented_and_typos_are_errors(model: type[BaseModel]) -> None:
    assert model.__doc__
    undocumented = [name for name, info in model.model_fields.items() if not info.description]
    assert not undocumented, f"{model.__name__}: no docstring under {undocumented}"
    # Section data takes further sources by any name, each checked as a domain.
    assert model.model_config.get("extra") == ("allow" if model is DataParams else "forbid")
    assert model.model_config.get("frozen")
