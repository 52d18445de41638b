"""Scenarios: short YAML files that say what differs from another one; DVC gets a whole params.yaml of them.

    # Why this one exists.
    extends: city              # another file of scenarios/; without it the rest is the code's defaults
    adapt:
      iterations: 500          # sections merge, lists and values replace, null sets null

A data set that names its ``kind`` replaces the base's as a whole. A comment above or behind a key belongs to
its value: whoever sets the value again says again why. ``scenario`` and ``tracking.experiment`` are the name
of the file unless it says otherwise.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from panoda.config.methods import DEFAULTS, methods_of, params_model
from panoda.config.params import Params
from panoda.config.problems import sections_in
from panoda.config.reading import apply_overrides, parse_params, read_tree
from panoda.config.section import ConfigError

SCENARIOS = Path("scenarios")
KINDS = {"dataset": "kind", **dict.fromkeys(DEFAULTS, "method")}
"""Sections that begin anew where the key is named that says what they are."""
LINE = 90
"""Longest line of params.yaml with a mapping or a list in it; longer ones take several lines."""

Key = tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """A scenario with all that it extends.

    Attributes:
        where: Its file and those it extends, for messages.
        tree: What the files say, not yet validated.
        header: Comment lines at the top of its own file.
        comments: Comment lines that belong to a key.
    """

    asked: str
    where: str
    tree: dict[str, Any]
    header: list[str] = field(default_factory=list)
    comments: dict[Key, list[str]] = field(default_factory=dict)

    def params(self, overrides: Sequence[str] = ()) -> Params:
        """The whole tree, with defaults; ConfigError where it is wrong."""
        return parse_params(apply_overrides(self.tree, overrides), self.where)

    def text(self, overrides: Sequence[str] = ()) -> str:
        """The whole params.yaml, with the comments."""
        told = f"Written by `panoda scenario {self.asked}`. `panoda params` says what every parameter means."
        lines = [*self.header, f"# {told}"]
        tree = self.params(overrides).model_dump(mode="json")
        for name, value in tree.items():
            if isinstance(value, Mapping):
                lines += ["", *(f"# {line}" for line in textwrap.wrap(_purpose(name, value), LINE))]
            lines += _written(name, value, (), self.comments)
        return "\n".join(lines) + "\n"


def scenario_files(folder: Path = SCENARIOS) -> dict[str, Path]:
    """The scenarios by name, without those that are only there to be extended (below ``base/``)."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_scenario(name: str | Path, overrides: Sequence[str] = (), *, folder: Path = SCENARIOS) -> Params:
    """Parameters of a scenario; arguments and errors as in ``open_scenario`` and ``load_params``."""
    return open_scenario(name, folder=folder).params(overrides)


def open_scenario(name: str | Path, *, folder: Path = SCENARIOS) -> Scenario:
    """Read a scenario and all that it extends.

    Args:
        name: Name of a file in ``folder``, or the path of a YAML file anywhere.

    Raises:
        ConfigError: an unknown name, a circle, or a file that cannot be read.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _find(str(name), folder, "")
    chain = _chain(path, folder)
    tree: dict[str, Any] = {}
    comments: dict[Key, list[str]] = {}
    header: list[str] = []
    for file, own in reversed(chain):
        if file == path:
            named = {"scenario": path.stem, "tracking": {"experiment": path.stem}}
            tree = _merged(tree, named, (), comments)
        tree = _merged(tree, own, (), comments)
        header, found = _comments(file.read_text(encoding="utf-8"))
        comments |= found
    extended = f" (extends {', '.join(file.stem for file, _ in chain[1:])})" if chain[1:] else ""
    return Scenario(Path(name).as_posix(), f"{path}{extended}", tree, header, comments)


def _chain(path: Path, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and those it extends, each with what it says itself."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        tree = read_tree(path)
        base = tree.pop("extends", None)
        chain.append((path, tree))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{path}: extends: expected the name of one scenario, found {base!r}")
        path = _find(base, folder, f"{path}: extends: ")
        if path.resolve() in [file.resolve() for file, _ in chain]:
            circle = " -> ".join(file.stem for file in [*(file for file, _ in chain), path])
            raise ConfigError(f"{path}: extends goes in a circle: {circle}")


def _find(name: str, folder: Path, prefix: str) -> Path:
    path = folder / f"{name}.yaml"
    if path.is_file():
        return path
    known = [file.relative_to(folder).with_suffix("").as_posix() for file in sorted(folder.rglob("*.yaml"))]
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"{prefix}no scenario {name!r}; {meant}There are {', '.join(known) or f'none in {folder}'}. "
        "Or give the path of a .yaml file"
    )


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], at: Key, comments: dict[Key, list[str]]) -> Any:
    """``base`` with what ``own`` says; ``comments`` lose what was said of values that go."""
    result = dict(base)
    for key, value in own.items():
        here, old = (*at, key), base.get(key)
        anew = isinstance(value, Mapping) and KINDS.get(key) in value
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not anew:
            result[key] = _merged(old, value, here, comments)
            continue
        for below in [k for k in comments if k[: len(here)] == here]:
            del comments[below]
        result[key] = value
    return result


# --- comments ------------------------------------------------------------------------------------------


def _comments(text: str) -> tuple[list[str], dict[Key, list[str]]]:
    """Comment lines at the top of a file, and those above or behind every key."""
    lines = text.splitlines()
    found = dict(_of_keys(yaml.compose(text, Loader=yaml.SafeLoader), lines, ()))
    header = lines[: next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return header, {key: said for key, said in found.items() if said and key != ("extends",)}


def _of_keys(node: yaml.Node | None, lines: Sequence[str], at: Key) -> Iterator[tuple[Key, list[str]]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        first = key.start_mark.line
        start = first
        alone = not lines[first][: key.start_mark.column].strip()  # else it stands in {...}, behind others
        while alone and start > 0 and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        # At the top of the file it is the file's own.
        above = [line.strip() for line in lines[start:first]] if start > 0 else []
        end = value.end_mark if value.end_mark.line == first else key.end_mark
        behind = lines[first][end.column :].lstrip(": ")
        said = above + ([behind] if alone and behind.startswith("#") else [])
        yield (*at, key.value), said
        yield from _of_keys(value, lines, (*at, key.value))


# --- writing -------------------------------------------------------------------------------------------


def _section(name: str) -> type[BaseModel] | None:
    """The model of a section of the whole tree, if it has one."""
    return next(iter(sections_in(params_model().model_fields[name].annotation)), None)


def _purpose(name: str, value: Mapping[str, Any]) -> str:
    """What a section is for, in one paragraph; of a training stage, what its method does."""
    section = methods_of(name)[value["method"]] if name in DEFAULTS else _section(name)
    said = str(section.__doc__ if section else Params.model_fields[name].description)
    return " ".join(said.split("\n\n")[0].split())


def _written(key: str, value: Any, at: Key, comments: Mapping[Key, list[str]]) -> Iterator[str]:
    """The lines of one key: on one line if that is short and nothing inside is commented."""
    here, indent = (*at, key), "  " * len(at)
    yield from (indent + said for said in comments.get(here, ()))
    collection = isinstance(value, Mapping | list) and bool(value)
    line = f"{indent}{_flow(key)}: {_flow(value) if collection else _scalar(value)}"
    commented = any(len(k) > len(here) and k[: len(here)] == here for k in comments)
    section = not at and _section(key) is not None
    if not collection or (len(line) <= LINE and not commented and not section):
        yield line
        return
    yield f"{indent}{_flow(key)}:"
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _written(inner, one, here, comments)
    else:
        yield from (f"{indent}  - {_flow(one)}" for one in value)


class _Dumper(yaml.SafeDumper):
    """Values as a person writes them: no aliases, no exponents."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_number(self, value: float) -> yaml.Node:
        if not math.isfinite(value) or not 1e-9 <= abs(value) < 1e15:
            return self.represent_float(value)
        return self.represent_scalar("tag:yaml.org,2002:float", format(Decimal(repr(value)), "f"))


_Dumper.add_representer(float, _Dumper.represent_number)


def _scalar(value: Any) -> str:
    """A value that is no collection, on a line of its own."""
    line = yaml.dump({"": value}, Dumper=_Dumper, default_flow_style=False, width=math.inf)
    return line.partition(": ")[2].removesuffix("\n")


def _flow(value: Any) -> str:
    """A value on one line, also inside others."""
    return yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=math.inf, sort_keys=False)[1:-2]
