"""Read what the stages wrote into one value the report is made of.

Only the evaluation is required; everything else may be missing and the report says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from panoda.labels import LabelSpace, stored_space
from panoda.system.files import sha256_file

_PICTURE = re.compile(r"(?P<set>\w+)-(?P<number>\d+)-(?P<what>\w+)\.png")


@dataclass(frozen=True)
class Picture:
    """One fixed image: ``files`` maps input, truth and model names to PNG files."""

    set_name: str
    number: int
    files: dict[str, Path]


@dataclass(frozen=True)
class Round:
    """Pseudo-labels and prototypes of one round of adaptation; None where the stage left no table."""

    number: int
    pseudo_labels: pd.DataFrame | None
    prototypes: pd.DataFrame | None


@dataclass(frozen=True)
class Results:
    """Everything the stages left behind.

    Attributes:
        models: Evaluated models in training order, without copies; the first is source-only.
        copies: Model that a stage of 0 steps passed through -> the model it is.
        sets: evaluate/sets.json: images, labelled, projection, label spaces, digest, note of each set.
        confusion: (model, set) -> (K, K) pixel counts.
        pictures: Fixed images, target first.
        histories: Stage -> history.csv.
        checkpoints: Stage -> SHA-256 of its model.safetensors.
        reconstruction: What pretraining without labels makes of fixed images, where it ran.
    """

    models: list[str]
    metrics: dict[str, dict[str, dict[str, Any]]]
    sets: dict[str, dict[str, Any]]
    space: LabelSpace
    per_class: pd.DataFrame
    by_latitude: pd.DataFrame
    by_azimuth: pd.DataFrame
    by_group: pd.DataFrame
    copies: dict[str, str] = field(default_factory=dict)
    confusion: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    histories: dict[str, pd.DataFrame] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    checkpoints: dict[str, str] = field(default_factory=dict)
    reconstruction: Path | None = None

    @property
    def adapted(self) -> bool:
        """Whether any model differs from the first."""
        return len(self.models) > 1

    @property
    def shown_sets(self) -> list[str]:
        """Evaluation sets in the order of the report: target test, source val, val of further sources."""
        first = ["target_test", "source_val"]
        return [*first, *(name for name in self.sets if name not in first)]

    def labelled(self, name: str) -> bool:
        """Whether a set has scores."""
        return bool(self.sets.get(name, {}).get("labelled"))


def collect(outputs: Path) -> Results:
    """Read ``outputs``.

    Raises:
        ValueError: there is no readable evaluation.
    """
    folder = outputs / "evaluate"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; run the stage evaluate first")
    metrics, sets, about = (_json(folder / f"{name}.json") for name in ("metrics", "sets", "models"))
    per_class = _csv(folder / "per_class.csv")
    scored = sets["source_val"]
    copies = {name: one["same_weights_as"] for name, one in about.items() if one["same_weights_as"]}
    models = [name for name in dict.fromkeys(per_class["model"]) if name not in copies]
    learned = outputs / "ssl_pretrain" / "reconstruction.png"
    return Results(
        models=models,
        copies=copies,
        metrics=metrics,
        sets=sets,
        space=stored_space(scored["label_space"], scored.get("class_names"), scored.get("palette")),
        per_class=per_class,
        by_latitude=_csv(folder / "by_latitude.csv"),
        by_azimuth=_csv(folder / "by_azimuth.csv"),
        by_group=_csv(folder / "by_group.csv"),
        confusion=dict(_confusion(folder, models, list(sets))),
        pictures=_pictures(folder / "pictures"),
        histories={name: _csv(path) for name, path in _stage_files(outputs, "history.csv")},
        rounds=_rounds(outputs),
        checkpoints={name: sha256_file(path) for name, path in _stage_files(outputs, "model.safetensors")},
        reconstruction=learned if learned.is_file() else None,
    )


def _json(path: Path) -> Any:
    return _read(path, lambda: json.loads(path.read_text(encoding="utf-8")))


def _csv(path: Path) -> pd.DataFrame:
    return _read(path, lambda: pd.read_csv(path))


def _read(path: Path, how: Callable[[], Any]) -> Any:
    try:
        return how()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run the stage that writes it again") from error


def _confusion(
    folder: Path, models: list[str], sets: list[str]
) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    for model in models:
        for name in sets:
            path = folder / f"confusion_{model}_{name}.csv"
            if path.is_file():
                yield (model, name), _csv(path).set_index("label")


def _pictures(folder: Path) -> list[Picture]:
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        if match := _PICTURE.fullmatch(path.name):
            found.setdefault((match["set"], int(match["number"])), {})[match["what"]] = path
    pictures = [Picture(*key, files) for key, files in found.items() if "input" in files]
    return sorted(pictures, key=lambda p: (p.set_name != "target_test", p.set_name, p.number))


def _round_folders(outputs: Path) -> list[tuple[int, Path]]:
    further = [p for p in (outputs / "rounds").glob("round*") if p.name[5:].isdigit()]
    return [(1, outputs), *sorted((int(p.name[5:]), p) for p in further)]


def _stage_files(outputs: Path, name: str) -> Iterator[tuple[str, Path]]:
    places = [(stage, outputs / stage) for stage in ("ssl_pretrain", "pretrain", "warmup")]
    for number, folder in _round_folders(outputs):
        places.append(("adapt" if number == 1 else f"adapt, round {number}", folder / "adapt"))
    yield from ((stage, folder / name) for stage, folder in places if (folder / name).is_file())


def _rounds(outputs: Path) -> list[Round]:
    rounds = []
    for number, folder in _round_folders(outputs):
        paths = (folder / stage / "classes.csv" for stage in ("pseudo_labels", "prototypes"))
        tables = [_csv(path) if path.is_file() else None for path in paths]
        rounds.append(Round(number, *tables))
    return rounds
