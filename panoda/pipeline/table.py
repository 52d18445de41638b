"""The stages of the pipeline: the one place that says what each takes, gives and depends on.

``make pipeline`` writes dvc.yaml, prefect.yaml and the flows' files from it (``panoda.pipeline.write``); flows,
``panoda promote`` and the tests read it. A stage's code is given by rooms (folders) and, where a parameter
chooses a file, by a template as in dvc.yaml: a change of one decoder re-runs only what uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from panoda.config import Params, prepared_folder

_SOURCE_TRAIN = "data/prepared/source/train"
_TARGET_TRAIN = "data/prepared/target/train"
_MORE_SOURCES = "data/prepared/more_sources"
_LABELLED = {"source_train": _SOURCE_TRAIN, "more_sources": _MORE_SOURCES}
_WARMED_UP = {"checkpoint": "outputs/warmup/model.safetensors"}

_BASE = ("panoda/config", "panoda/labels", "panoda/system")
_RAW = ("panoda/geometry", "panoda/data/formats")
_ENCODER = ("panoda/models/core", "panoda/models/deform", "panoda/models/encoders")
_MODEL = (*_ENCODER, "panoda/models/decoders/${model.decoder}.py")
_PREDICTION = ("panoda/data/loading", "panoda/geometry", "panoda/inference")
_TRAINING = ("panoda/engine", "panoda/methods/parts")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Name of the stage, of its module in ``panoda.stages`` and of its flow.
        description: What it does, in a line.
        sections: Dotted paths into params.yaml that make up its identity; ``{role}`` is filled in.
        inputs: Input name -> default path, relative to the project root; ``{role}`` is filled in.
        out: Output of the pipeline's run, relative to the project root; ``{folder}`` is the role's folder.
        code: Its code besides its own file: rooms, files, and templates such as ``${model.decoder}``.
        per_role: There is one such stage for each domain of section data.
        on_gpu: It computes on the device of ``runtime.device``.
        trains: Section with the batch size of its training, which may use several devices; "" = none.
        in_pieces: How much of it ``runtime.cluster`` can fan out.
    """

    name: str
    description: str
    sections: tuple[str, ...]
    inputs: Mapping[str, str]
    out: str
    code: tuple[str, ...]
    per_role: bool = False
    on_gpu: bool = True
    trains: str = ""
    in_pieces: Literal["none", "some", "all"] = "none"

    @property
    def module(self) -> str:
        """Module with the stage function."""
        return f"panoda.stages.{self.name}"

    @property
    def flow_sections(self) -> tuple[str, ...]:
        """Top-level sections that its flow takes."""
        return tuple(dict.fromkeys(section.split(".")[0] for section in self.sections))

    def code_paths(self, params: Params) -> list[Path]:
        """Files and folders of its code, relative to the project root, with templates filled in."""
        tree = params.model_dump(mode="json")
        return [Path(_filled(path, tree)) for path in (*self.code, f"panoda/stages/{self.name}.py")]

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
        unread = set() if params is None else self._unread(params)
        return {name: path for name, path in paths.items() if name not in unread}

    def _unread(self, params: Params) -> set[str]:
        """Names of inputs that a run with ``params`` does not read."""
        images = set(params.ssl.images)
        unread = {"more_sources"} if len(params.sources) == 1 else set()
        if self.name == "ssl_pretrain":
            roles = {"source_train": "source" in images, "target_train": "target" in images}
            roles["more_sources"] = bool(images - {"source", "target"})
            unread = {name for name, read in roles.items() if not read}
        return unread if images else unread | {"ssl_weights"}

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
        Stage(
            "download",
            "raw files of a domain, rendered or used in place",
            sections=("data.{role}.dataset",),
            inputs={},
            out="data/raw/{role}",
            code=(*_BASE, *_RAW, "panoda/data/acquire", "panoda/city"),
            per_role=True,
            on_gpu=False,
        ),
        Stage(
            "preprocess",
            "raw files to index and shards",
            sections=("data.{role}", "label_space"),
            inputs={"raw": "data/raw/{role}"},
            out="data/prepared/{folder}",
            code=(
                *_BASE,
                *_RAW,
                "panoda/data/prepare",
                *(f"panoda/data/loading/{name}.py" for name in ("codec", "index", "prepared", "shards")),
            ),
            per_role=True,
            on_gpu=False,
            in_pieces="all",
        ),
        Stage(
            "weights",
            "pretrained weights for the model, from data/weights",
            sections=("model",),
            inputs={"weights": "data/weights"},
            out="outputs/weights",
            code=(*_BASE, *_MODEL, "panoda/models/weights"),
            on_gpu=False,
        ),
        Stage(
            "ssl_pretrain",
            "the encoder learns from images without labels (nothing when ssl.method is none)",
            sections=("model.encoder", "ssl", "seed"),
            inputs={**_LABELLED, "target_train": _TARGET_TRAIN},
            out="outputs/ssl_pretrain",
            code=(
                *_BASE,
                *_ENCODER,
                *_PREDICTION,
                *_TRAINING,
                *(f"panoda/models/{name}.py" for name in ("beit", "mae", "tokenizer")),
                "panoda/models/weights",
                "panoda/stages/weights.py",
                "panoda/methods/${ssl.method}.py",
            ),
            trains="ssl",
        ),
        Stage(
            "pretrain",
            "training on the labelled sources",
            sections=("sources", "model", "pretrain", "seed"),
            inputs={
                "weights": "outputs/weights",
                "ssl_weights": "outputs/ssl_pretrain/encoder",
                **_LABELLED,
                "source_val": "data/prepared/source/val",
            },
            out="outputs/pretrain",
            code=(
                *_BASE,
                *_MODEL,
                *_PREDICTION,
                *_TRAINING,
                "panoda/models/weights",
                "panoda/stages/weights.py",
            ),
            trains="pretrain",
        ),
        Stage(
            "warmup",
            "alignment of source and target before self-training",
            sections=("sources", "warmup", "seed"),
            inputs={
                "checkpoint": "outputs/pretrain/model.safetensors",
                **_LABELLED,
                "target_train": _TARGET_TRAIN,
            },
            out="outputs/warmup",
            code=(*_BASE, *_MODEL, *_PREDICTION, *_TRAINING, "panoda/methods/${warmup.method}.py"),
            trains="warmup",
        ),
        Stage(
            "pseudo_labels",
            "labels for the target's training images",
            sections=("pseudo_labels",),
            inputs={**_WARMED_UP, "target_train": _TARGET_TRAIN},
            out="outputs/pseudo_labels",
            code=(*_BASE, *_MODEL, *_PREDICTION, "panoda/methods/parts"),
            in_pieces="all",
        ),
        Stage(
            "prototypes",
            "mean features per class of both domains",
            sections=("sources", "prototypes"),
            inputs={
                **_WARMED_UP,
                **_LABELLED,
                "target_train": _TARGET_TRAIN,
                "pseudo_labels": "outputs/pseudo_labels",
            },
            out="outputs/prototypes",
            code=(*_BASE, *_MODEL, *_PREDICTION, "panoda/methods/parts"),
            in_pieces="all",
        ),
        Stage(
            "adapt",
            "adaptation to the target by the method of section adapt",
            sections=("sources", "adapt", "seed"),
            inputs={
                **_WARMED_UP,
                **_LABELLED,
                "target_train": _TARGET_TRAIN,
                "pseudo_labels": "outputs/pseudo_labels",
                "prototypes": "outputs/prototypes",
            },
            out="outputs/adapt",
            code=(*_BASE, *_MODEL, *_PREDICTION, *_TRAINING, "panoda/methods/${adapt.method}.py"),
            trains="adapt",
        ),
        Stage(
            "rounds",
            "second and later rounds (nothing when rounds is 1)",
            sections=("sources", "rounds", "pseudo_labels", "prototypes", "adapt", "seed"),
            inputs={
                "adapted": "outputs/adapt/model.safetensors",
                **_LABELLED,
                "target_train": _TARGET_TRAIN,
            },
            out="outputs/rounds",
            code=(
                *_BASE,
                *_MODEL,
                *_PREDICTION,
                *_TRAINING,
                "panoda/methods/${adapt.method}.py",
                *(f"panoda/stages/{name}.py" for name in ("pseudo_labels", "prototypes", "adapt")),
            ),
            trains="adapt",
            in_pieces="some",
        ),
        Stage(
            "evaluate",
            "every model on source val and target test",
            sections=("sources", "evaluate"),
            inputs={
                "source_only": "outputs/pretrain/model.safetensors",
                "warmup": "outputs/warmup/model.safetensors",
                "round1": "outputs/adapt/model.safetensors",
                "rounds": "outputs/rounds",
                "source_val": "data/prepared/source/val",
                "more_sources": _MORE_SOURCES,
                "target_test": "data/prepared/target/test",
            },
            out="outputs/evaluate",
            code=(*_BASE, *_MODEL, *_PREDICTION, "panoda/evaluation"),
            in_pieces="all",
        ),
        Stage(
            "report",
            "one self-contained page",
            sections=tuple(name for name in Params.model_fields if name not in ("runtime", "tracking")),
            inputs={"outputs": "outputs"},
            out="reports",
            code=("panoda/labels", "panoda/system", "panoda/deployment/viewer", "panoda/report"),
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


def _filled(path: str, tree: Mapping[str, Any]) -> str:
    """``${section.key}`` replaced by the parameter's value."""

    def value(match: re.Match[str]) -> str:
        found: Any = tree
        for part in match.group(1).split("."):
            found = found[part]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, path)
