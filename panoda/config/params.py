"""The whole tree, and reading it from YAML."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from panoda.config.adaptation import AdaptParams, PrototypeParams, PseudoLabelParams
from panoda.config.domains import DataParams
from panoda.config.pairs import check_crops, check_devices
from panoda.config.problems import problems
from panoda.config.running import EvaluateParams, RuntimeParams, TrackingParams
from panoda.config.section import ConfigError, Count, Name, Section, SourceWeights
from panoda.config.training import ModelParams, PretrainParams, WarmupParams
from panoda.labels import SPACES, get_label_space, is_space_file
from panoda.system.files import read_yaml


class Params(Section):
    """The whole of params.yaml."""

    scenario: Name
    """Name of this scenario."""
    seed: Count = 0
    """Seed of every random generator."""
    label_space: str
    """Classes that are trained and evaluated: a built-in label space, or the path of a YAML file."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds of pseudo-labels and adaptation."""
    data: DataParams
    """The domains."""
    sources: SourceWeights = {"source": 1.0}
    """Labelled source -> its share of the training samples, relative to the others'."""
    model: ModelParams
    """The model."""
    pretrain: PretrainParams
    """Stage pretrain."""
    warmup: WarmupParams
    """Stage warmup."""
    pseudo_labels: PseudoLabelParams = PseudoLabelParams()
    """Stage pseudo_labels."""
    prototypes: PrototypeParams = PrototypeParams()
    """Stage prototypes."""
    adapt: AdaptParams
    """Stage adapt."""
    evaluate: EvaluateParams = EvaluateParams()
    """Stage evaluate."""
    runtime: RuntimeParams = RuntimeParams()
    """Device and precision."""
    tracking: TrackingParams = TrackingParams()
    """MLflow."""

    @model_validator(mode="after")
    def _known_space(self) -> Params:
        if is_space_file(self.label_space):
            get_label_space(self.label_space)
        elif self.label_space not in SPACES:
            raise ValueError(f"label_space {self.label_space!r} is unknown; known: {', '.join(SPACES)}")
        return self

    @model_validator(mode="after")
    def _go_together(self) -> Params:
        check_crops(self)
        check_devices(self)
        return self

    @model_validator(mode="after")
    def _weighted_sources(self) -> Params:
        labelled = set(self.data.domains) - {"target"}
        if set(self.sources) != labelled:
            raise ValueError(
                f"sources weighs {', '.join(sorted(self.sources)) or 'nothing'}; it must name every labelled "
                f"source of data and nothing else: {', '.join(sorted(labelled))}"
            )
        return self


def load_params(path: Path = Path("params.yaml"), overrides: Sequence[str] = ()) -> Params:
    """Read and validate a params file.

    Args:
        path: YAML file.
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
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = problems(Params, tree, error)
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
