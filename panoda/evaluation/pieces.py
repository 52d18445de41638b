"""The pieces of stage evaluate: some images of one set, predicted by one model and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from panoda.config import EvaluateParams
from panoda.data.loading.mixture import source_splits
from panoda.evaluation.evaluate import Evaluation, evaluate_model
from panoda.evaluation.sets import EvaluationSet, open_sets
from panoda.geometry.views import Views
from panoda.labels import LabelSpace
from panoda.models.core.checkpoint import load_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.context import RunContext
from panoda.system.files import sha256_file
from panoda.system.pieces import Work, seconds_of, spans

COUNTS = "counts.safetensors"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate.

    Attributes:
        same_as: Name of the earlier model that has the same weights, or None.
    """

    path: Path
    digest: str
    same_as: str | None
    params: Mapping[str, Any]


def load_models(models: Mapping[str, Path], *, space: LabelSpace) -> dict[str, EvaluatedModel]:
    """Check every model, and find those that have the weights of the model before.

    A stage of 0 steps passes its model through; what is known of it need not be computed again.

    Raises:
        ValueError: no model file, or a model of other classes.
    """
    found: dict[str, EvaluatedModel] = {}
    weights: dict[str, torch.Tensor] = {}
    original = ""
    for name, path in models.items():
        model, card = load_model(path, space=space, device="cpu")
        state = model.state_dict()
        same = state.keys() == weights.keys() and all(torch.equal(state[k], weights[k]) for k in state)
        if not same:
            original, weights = name, state
        same_as = original if same else None
        found[name] = EvaluatedModel(path.absolute(), sha256_file(path), same_as, card.params)
    return found


@dataclass(frozen=True)
class SetPaths:
    """What the sets are opened from; absolute, for workers elsewhere."""

    source_val: Path
    target_test: Path | None
    more_sources: Path | None
    sources: Mapping[str, float] | None

    def open(self, pictures: int) -> list[EvaluationSet]:
        """The sets of stage evaluate."""
        sources = source_splits(self.source_val, self.more_sources, self.sources)
        return open_sets(sources, self.target_test, pictures)


@dataclass(frozen=True)
class EvaluateWork(Work):
    """Every model on every set; a piece holds ``Evaluation.tensors``.

    Attributes:
        models: Name -> file and digest of every model that differs from the one before.
        sets: Name, digest and number of images of every set.
    """

    name = "evaluate"
    models: Mapping[str, tuple[Path, str]]
    paths: SetPaths
    sets: tuple[tuple[str, str, int], ...]
    params: EvaluateParams
    piece_size: int

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of a piece."""
        return {
            "models": [digest for _, digest in self.models.values()],
            "sets": self.sets,
            "params": self.params.model_dump(mode="json"),
            "piece_size": self.piece_size,
        }

    @property
    def plan(self) -> list[tuple[str, str, range]]:
        """Model, set and images of every piece."""
        return [
            (model, name, span)
            for model in self.models
            for name, _, images in self.sets
            for span in spans(images, self.piece_size)
        ]

    def __len__(self) -> int:
        return len(self.plan)

    def open(self, compute: RunContext) -> Callable[[int, Path], None]:
        """Open the sets; a model is loaded by its first piece and let go by the next model's."""
        params = self.params
        sets = {one.name: one for one in self.paths.open(params.pictures)}
        loaded: dict[str, Segmenter] = {}

        def make(number: int, folder: Path) -> None:
            model, name, span = self.plan[number]
            one = sets[name]
            if model not in loaded:
                loaded.clear()
                path, classes = self.models[model][0], one.space.num_classes
                loaded[model], _ = load_model(path, num_classes=classes, device=compute.device)
            counted = self._nothing(one)
            evaluate_model(
                loaded[model],
                one.split,
                counted,
                batch_size=compute.inference_batch,
                keep=one.pictures,
                images=span,
                device=compute.device,
                dtype=compute.dtype,
                scales=params.scales,
                flip=params.flip,
                sliding=(params.sliding.window, params.sliding.stride) if params.sliding else None,
                views=Views(**params.views.model_dump()) if params.views and one.split.full_circle else None,
                source_colours=params.source_colours,
            )
            (folder / COUNTS).write_bytes(save(counted.tensors()))

        return make

    def joined(self, model: str, current: EvaluationSet, pieces: Sequence[Path]) -> Evaluation:
        """What one model did on one set, from the folders of all pieces."""
        result = self._nothing(current)
        for (of, name, _), piece in zip(self.plan, pieces, strict=True):
            if (of, name) == (model, current.name):
                result.add(load_file(piece / COUNTS))
        return result

    def seconds(self, model: str, pieces: Sequence[Path]) -> float:
        """How long the pieces of one model took."""
        return sum(
            seconds_of(piece) for (of, *_), piece in zip(self.plan, pieces, strict=True) if of == model
        )

    def _nothing(self, current: EvaluationSet) -> Evaluation:
        """What is to be counted on a set, of no image yet."""
        return Evaluation(
            current.split,
            current.space.num_classes,
            bands=self.params.latitude_bands,
            sectors=self.params.azimuth_sectors,
            groups=current.groups if current.labelled else None,
        )
