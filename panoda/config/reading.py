"""Reading params.yaml."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from panoda.config.methods import params_model, with_methods
from panoda.config.params import Params
from panoda.config.problems import problems
from panoda.config.section import ConfigError
from panoda.system.files import read_yaml


def load_params(path: Path = Path("params.yaml"), overrides: Sequence[str] = ()) -> Params:
    """Read and validate a params file.

    Args:
        overrides: ``section.key=value`` strings; the value is YAML.

    Raises:
        ConfigError: unreadable file, malformed override, unknown key or a value out of range.
    """
    return parse_params(read_tree(path, overrides), str(path))


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The raw mapping of a params file with overrides applied, not yet validated."""
    try:
        tree = read_yaml(path.expanduser())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; run in the project root or name a params file") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return apply_overrides(tree, overrides)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a mapping with ``section.key=value`` strings applied."""
    tree = copy.deepcopy(tree)
    for override in overrides:
        _apply(tree, override)
    return tree


def parse_params(tree: dict[str, Any], where: str = "params") -> Params:
    """Validate a mapping; ConfigError lists every problem on its own line."""
    if "extends" in tree:
        raise ConfigError(
            f"{where}: extends is for scenario files; DVC needs a whole params.yaml, which "
            "`panoda scenario FILE.yaml` writes"
        )
    tree = with_methods(tree)
    try:
        return params_model().model_validate(tree)
    except ValidationError as error:
        lines = problems(params_model(), tree, error)
        raise ConfigError("\n  ".join([f"{where}: {len(lines)} problem(s)", *lines])) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    path = key.strip().split(".")
    if not sep or not all(path):
        raise ConfigError(f"--set {override!r}: expected section.key=value")
    node: Any = tree
    for part in path[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is not a section")
    try:
        node[path[-1]] = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error
