"""The stages of the pipeline as a table: which parameters, inputs and output each one has.

The flows, ``panoda promote`` and the tests read it; ``dvc.yaml`` says the same to DVC and a test holds the
two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from panoda.config import Params, prepared_folder

_PREPARED = "data/prepared"
_SOURCE_TRAIN = f"{_PREPARED}/source/train"
_TARGET_TRAIN = f"{_PREPARED}/target/train"
_SOURCE_VAL = f"{_PREPARED}/source/val"
_TARGET_TEST = f"{_PREPARED}/target/test"
_MORE_SOURCES = f"{_PREPARED}/more_sources"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Name of the stage, of its module in ``panoda.stages`` and of its flow.
        sections: Dotted paths into params.yaml that make up its identity; ``{role}`` is filled in.
        inputs: Input name -> default path, relative to the project root; ``{role}`` is filled in.
        out: Output of the pipeline's run, relative to the project root; ``{folder}`` is the role's folder.
        per_role: There is one such stage for each domain of section data.
        on_gpu: It computes on the device of ``runtime.device``.
        trains: Section with the batch size of its training, which may use several devices; "" = none.
        in_pieces: How much of it ``runtime.cluster`` can fan out.
    """

    name: str
    sections: tuple[str, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    out: str = ""
    per_role: bool = False
    on_gpu: bool = True
    trains: str = ""
    in_pieces: Literal["none", "some", "all"] = "none"

    @property
    def module(self) -> str:
        """Module with the stage function."""
        return f"panoda.stages.{self.name}"

    @property
    def registries(self) -> bool:
        """It picks a data set's module by name, so all of them belong to its code."""
        return self.per_role

    def label(self, role: str | None = None) -> str:
        """Name in dvc.yaml, such as ``pretrain`` or ``download@source``."""
        self._check(role)
        return f"{self.name}@{role}" if self.per_role else self.name

    def folder_name(self, role: str | None = None) -> str:
        """Name for folders, such as ``pretrain`` or ``download-source``."""
        return self.label(role).replace("@", "-")

    def input_paths(self, role: str | None = None, params: Params | None = None) -> dict[str, Path]:
        """The pipeline's inputs by name; with ``params``, only those that such a run reads."""
        self._check(role)
        paths = {name: Path(path.format(role=role)) for name, path in self.inputs.items()}
        if params is not None and len(params.sources) == 1:
            paths.pop("more_sources", None)
        return paths

    def out_path(self, role: str | None = None) -> Path:
        """The pipeline's output folder."""
        self._check(role)
        return Path(self.out.format(role=role, folder=prepared_folder(role or "")))

    def params(self, params: Params, role: str | None = None) -> dict[str, Any]:
        """The stage's own parameters as plain JSON values, nested as in params.yaml."""
        self._check(role)
        self.check_role(params, role)
        tree = params.model_dump(mode="json")
        own: dict[str, Any] = {}
        for section in self.sections:
            *parents, leaf = section.format(role=role).split(".")
            source, target = tree, own
            for part in parents:
                source, target = source[part], target.setdefault(part, {})
            target[leaf] = source[leaf]
        return own

    def check_role(self, params: Params, role: str | None) -> None:
        """ValueError when ``role`` is no domain of ``params``."""
        if self.per_role and role not in params.data.domains:
            known = ", ".join(params.data.domains)
            raise ValueError(
                f"stage {self.name} needs --role, a domain of section data: {known}; got {role!r}"
            )

    def _check(self, role: str | None) -> None:
        if self.per_role and not role:
            raise ValueError(f"stage {self.name} needs --role, a domain of section data such as source")
        if not self.per_role and role is not None:
            raise ValueError(f"stage {self.name} has no roles; leave --role out")


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("download", ("data.{role}.dataset",), {}, "data/raw/{role}", per_role=True, on_gpu=False),
        Stage(
            "preprocess",
            ("data.{role}", "label_space"),
            {"raw": "data/raw/{role}"},
            "data/prepared/{folder}",
            per_role=True,
            on_gpu=False,
            in_pieces="all",
        ),
        Stage("weights", ("model",), {"weights": "data/weights"}, "outputs/weights", on_gpu=False),
        Stage(
            "pretrain",
            ("sources", "model", "pretrain", "seed"),
            {
                "weights": "outputs/weights",
                "source_train": _SOURCE_TRAIN,
                "source_val": _SOURCE_VAL,
                "more_sources": _MORE_SOURCES,
            },
            "outputs/pretrain",
            trains="pretrain",
        ),
        Stage(
            "warmup",
            ("sources", "warmup", "seed"),
            {
                "checkpoint": "outputs/pretrain/model.safetensors",
                "source_train": _SOURCE_TRAIN,
                "more_sources": _MORE_SOURCES,
                "target_train": _TARGET_TRAIN,
            },
            "outputs/warmup",
            trains="warmup",
        ),
        Stage(
            "pseudo_labels",
            ("pseudo_labels",),
            {"checkpoint": "outputs/warmup/model.safetensors", "target_train": _TARGET_TRAIN},
            "outputs/pseudo_labels",
            in_pieces="all",
        ),
        Stage(
            "prototypes",
            ("sources", "prototypes"),
            {
                "checkpoint": "outputs/warmup/model.safetensors",
                "source_train": _SOURCE_TRAIN,
                "more_sources": _MORE_SOURCES,
                "target_train": _TARGET_TRAIN,
                "pseudo_labels": "outputs/pseudo_labels",
            },
            "outputs/prototypes",
            in_pieces="all",
        ),
        Stage(
            "adapt",
            ("sources", "adapt", "seed"),
            {
                "checkpoint": "outputs/warmup/model.safetensors",
                "source_train": _SOURCE_TRAIN,
                "more_sources": _MORE_SOURCES,
                "target_train": _TARGET_TRAIN,
                "pseudo_labels": "outputs/pseudo_labels",
                "prototypes": "outputs/prototypes",
            },
            "outputs/adapt",
            trains="adapt",
        ),
        Stage(
            "rounds",
            ("sources", "rounds", "pseudo_labels", "prototypes", "adapt", "seed"),
            {
                "adapted": "outputs/adapt/model.safetensors",
                "source_train": _SOURCE_TRAIN,
                "more_sources": _MORE_SOURCES,
                "target_train": _TARGET_TRAIN,
            },
            "outputs/rounds",
            trains="adapt",
            in_pieces="some",
        ),
        Stage(
            "evaluate",
            ("sources", "evaluate"),
            {
                "source_only": "outputs/pretrain/model.safetensors",
                "warmup": "outputs/warmup/model.safetensors",
                "round1": "outputs/adapt/model.safetensors",
                "rounds": "outputs/rounds",
                "source_val": _SOURCE_VAL,
                "more_sources": _MORE_SOURCES,
                "target_test": _TARGET_TEST,
            },
            "outputs/evaluate",
            in_pieces="all",
        ),
        Stage(
            "report",
            (
                "scenario",
                "seed",
                "label_space",
                "rounds",
                "data",
                "sources",
                "model",
                "pretrain",
                "warmup",
                "pseudo_labels",
                "prototypes",
                "adapt",
                "evaluate",
            ),
            {"outputs": "outputs"},
            "reports",
            on_gpu=False,
        ),
    )
}


def get_stage(name: str) -> Stage:
    """The stage called ``name``; ValueError lists the known ones."""
    if name not in STAGES:
        raise ValueError(f"unknown stage {name!r}; known: {', '.join(STAGES)}")
    return STAGES[name]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one level with dotted keys; lists stay values.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "scales": [1.0]})
        {'optim.lr': 0.1, 'scales': [1.0]}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
