"""A training method as the stages see it: its parameters, and its task made from what a stage hands over.

A method is one file in ``panoda/methods`` that ends with ``METHOD = Method(...)``; its name is the file's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from panoda.config import AugmentParams, ClassWeightParams, Section
from panoda.data.loading.loader import Augment, Batch, SampleSource, training_batches
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.transforms import JointTransform
from panoda.engine.losses import class_weights
from panoda.engine.seeds import stream_seed
from panoda.engine.task import Task
from panoda.system.context import RunContext

if TYPE_CHECKING:
    from panoda.models.core.segmenter import Segmenter


@dataclass(frozen=True)
class Setup:
    """What a stage hands to its method.

    Attributes:
        model: What is trained, on ``context.device``; in stage ssl_pretrain what ``Method.model`` made.
        params: The stage's section: the method's own parameters.
        labelled: Samples of the sources; None where a method is to do without. In stage ssl_pretrain the
            images, whatever domain they are of.
        target: Samples whose labels, if any, are never read; None in source training.
        pseudo_labels: Folder of that stage, in stage adapt; ``prototypes`` likewise.
    """

    stage: str
    model: Segmenter
    params: Any
    seed: int
    context: RunContext
    labelled: PreparedSplit | Mixture | None
    target: PreparedSplit | None = None
    pseudo_labels: Path | None = None
    prototypes: Path | None = None

    @property
    def source(self) -> PreparedSplit | Mixture:
        """The labelled samples."""
        if self.labelled is None:
            raise ValueError(f"{self.params.method} needs a labelled source; method source_free does without")
        return self.labelled

    @property
    def unlabelled(self) -> PreparedSplit:
        """The target."""
        assert self.target is not None, "Method.stage names a stage that has a target"
        return self.target

    def folder(self, stage: Literal["pseudo_labels", "prototypes"]) -> Path:
        """Result of an earlier stage."""
        found: Path | None = getattr(self, stage)
        assert found is not None, "Method.stage is the stage that has it"
        return found

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.context.device

    def batches(
        self, split: SampleSource, augment: AugmentParams, *, domain: str, colour: bool = True
    ) -> Callable[[int], Iterator[Batch]]:
        """A function from start step to random batches; ``colour=False`` leaves jitter and exposure out."""
        keywords = augment.model_dump() | ({} if colour else {"jitter": 0.0, "exposure": 0.0})
        keywords["yaw_roll"] = augment.yaw_roll and split.full_circle
        return self.crops(split, JointTransform(**keywords), domain=domain)

    def crops(
        self, split: SampleSource, transform: Augment, *, domain: str, params: Any = None
    ) -> Callable[[int], Iterator[Batch]]:
        """A function from start step to random batches of what ``transform`` makes.

        Of several processes each gets its share of every batch. ``params`` has batch_size and iterations, where
        these are not the stage's.
        """
        sizes, context = params or self.params, self.context

        def start(step: int) -> Iterator[Batch]:
            return training_batches(
                split,
                batch_size=sizes.batch_size,
                augment=transform,
                seed=stream_seed(self.seed, f"{self.stage} {domain}"),
                start_step=step,
                num_steps=sizes.iterations - step,
                workers=context.workers,
                share=(context.rank, context.world),
                pin=context.device.type == "cuda",
            )

        return start

    def whole_batches(
        self, split: SampleSource, augment: AugmentParams, *, domain: str, count: int
    ) -> Callable[[], Iterator[Batch]]:
        """``count`` random batches, whole ones in each of several processes; the same ones every time."""
        params = self.params.model_copy(update={"iterations": count})
        alone = replace(self, params=params, context=replace(self.context, rank=0, world=1))

        def start() -> Iterator[Batch]:
            torch.manual_seed(stream_seed(self.seed, f"{self.stage} {domain}"))
            return alone.batches(split, augment, domain=domain)(0)

        return start

    def lacking(self, batch: Batch) -> Tensor | None:
        """(B, K) bool, classes that the sources of a batch do not annotate, on the device; None = none."""
        found = self.labelled.lacking(batch["indices"]) if isinstance(self.labelled, Mixture) else None
        return None if found is None else found.to(self.device, non_blocking=True)

    def class_weights(self, params: ClassWeightParams) -> Tensor | None:
        """(K,) weights of the source's classes, or None."""
        if params.kind == "none":
            return None
        pixels = torch.as_tensor(np.asarray(self.source.class_pixels))
        return class_weights(pixels, kind=params.kind, cap=params.cap).to(self.device)


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        stage: Stage that runs it: ssl_pretrain, pretrain, warmup or adapt.
        params: Its parameters, with its name as the type of ``method``.
        task: Its task, made from a ``Setup``.
        model: Where it trains something else than a segmentation model: that, for an encoder's name and the
            parameters, with random weights.
    """

    stage: str
    params: type[Section]
    task: Callable[[Setup], Task]
    model: Callable[[str, Any], nn.Module] | None = None


def get_method(name: str) -> Method:
    """The method in ``panoda/methods/<name>.py``."""
    found = importlib.import_module(f"panoda.methods.{name}").METHOD
    if not isinstance(found, Method):
        raise ValueError(
            f"panoda/methods/{name}.py: METHOD is no Method; end the file with METHOD = Method(...)"
        )
    return found
