"""The house keeps its shape: import directions, stages as dvc.yaml, prefect.yaml and the flows say."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from panoda import config
from panoda.config import DataParams, Params
from panoda.pipeline.runs import PACKAGE, import_closure
from panoda.pipeline.table import STAGES, Stage

ROOT = Path(__file__).resolve().parents[1]
# Who may import whom: a file imports from its own level and from those above it in this list.
LEVELS = (
    (
        "channels",
        "config",
        "labels",
        "label_spaces",
        "files",
        "locks",
        "machine",
        "progress",
        "geometry",
        "pieces",
        "background",
        "shares",
    ),
    ("data", "models", "losses", "metrics"),
    ("adaptation",),
    ("sliding", "inference"),
    ("training",),
    ("exported", "export_check"),
    ("evaluation", "evaluation_counts", "view", "predict", "export", "model_table"),
    ("report",),
    ("stages",),
    ("pipeline", "runs", "tracking", "runnable"),
    ("errors",),
    ("cli", "bench_cli", "data_cli", "models_cli", "weights_cli"),
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
    return parts[0].removesuffix(".py")


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
            other = name.split(".")[1]
            assert level(other) <= level(own), (
                f"panoda/{own} must not import panoda/{other} ({path.name}: {name})"
            )


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
    if stage.per_role:
        assert entry["foreach"] == "${data}"
        return entry["do"]
    return entry


def filled(stage: Stage, texts: Any) -> list[str]:
    return (
        [t.format(role="${key}", folder="${item.folder}") for t in texts] if stage.per_role else list(texts)
    )


def test_dvc_and_the_table_name_the_same_stages(pipeline: dict[str, Any]) -> None:
    assert list(pipeline["stages"]) == ["watch", *STAGES]  # watch is no flow


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_dvc_stage_says_what_the_table_says(pipeline: dict[str, Any], stage: Stage) -> None:
    entry = definition(pipeline, stage)
    role = " --role ${key}" if stage.per_role else ""
    assert entry["cmd"] == f"sh flows/python.sh -m flows.{stage.name}{role} --pipeline"
    assert entry["params"] == filled(stage, stage.sections)
    assert entry["outs"] == filled(stage, [stage.out])
    named = [d for d in entry["deps"] if d.startswith("data/named/")]
    assert named == {
        "download": ["data/named/datasets/${key}"],
        "preprocess": ["data/named/datasets/${key}", "data/named/label_space"],
    }.get(stage.name, [])
    data = [d for d in entry["deps"] if d.startswith(("data/", "outputs/")) and d not in named]
    if stage.name == "report":
        assert data == [s.out for s in STAGES.values() if s.out.startswith("outputs/")]
    else:
        assert data == filled(stage, stage.inputs.values())


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_dvc_code_is_the_import_closure(pipeline: dict[str, Any], stage: Stage) -> None:
    deps = [d for d in definition(pipeline, stage)["deps"] if d.startswith(("panoda/", "flows/"))]
    if stage.name == "download":
        deps.remove("panoda/data/formats/declarations")  # YAML files
    files = {
        "panoda/" + p.relative_to(PACKAGE).as_posix()
        for p in import_closure(stage.module, registries=stage.registries)
    }
    needed = {f for f in files if not is_bare(ROOT / f)} | {f"flows/{stage.name}.py"}
    missing = sorted(f for f in needed if not any(f == d or f.startswith(f"{d}/") for d in deps))
    assert not missing, f"stage {stage.name}: add to deps in dvc.yaml: {missing}"
    idle = sorted(d for d in deps if not any(f == d or f.startswith(f"{d}/") for f in needed))
    assert not idle, f"stage {stage.name}: remove from deps in dvc.yaml: {idle}"


def is_bare(path: Path) -> bool:
    """An ``__init__.py`` without behaviour: a docstring, perhaps the version."""
    if path.name != "__init__.py":
        return False
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return all(
        isinstance(n, ast.Expr) or (isinstance(n, ast.Assign) and "version" in ast.unparse(n)) for n in nodes
    )


def test_modules_imported_by_name_are_found_by_the_stages_that_do_so() -> None:
    users = {
        p.relative_to(PACKAGE).as_posix()
        for p in python_files(PACKAGE)
        if "import_module(" in p.read_text(encoding="utf-8")
    }
    # exported.py imports libraries alone by name, nothing of this package.
    users.discard("exported.py")
    assert users == {"data/dataset.py"}, "stages with registries=False would not notice a change there"


def test_target_labels_reach_evaluation_alone(pipeline: dict[str, Any]) -> None:
    for stage in STAGES.values():
        deps = definition(pipeline, stage)["deps"]
        labelled = [d for d in deps if d.startswith("data/prepared/target") and not d.endswith("/train")]
        assert bool(labelled) == (stage.name == "evaluate"), (stage.name, labelled)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_flow_parameters_are_the_stages_sections(stage: Stage) -> None:
    flow = getattr(importlib.import_module(f"flows.{stage.name}"), stage.name)
    names = set(inspect.signature(flow.fn).parameters)
    sections = {s.split(".")[0] for s in stage.sections} if stage.name != "report" else set()
    assert names == sections | {"runtime", "tracking", "job"} | ({"role"} if stage.per_role else set())
    hints = inspect.get_annotations(flow.fn, eval_str=True)
    for name in sections:
        assert Params.model_fields[name].annotation in hints[name].__args__


def test_every_flow_is_a_deployment() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert [d["entrypoint"] for d in deployments] == [f"flows/{n}.py:{n}" for n in STAGES]
    assert {d["name"] for d in deployments} == {"local"}
    assert {d["work_pool"]["name"] for d in deployments} == {"local"}


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
