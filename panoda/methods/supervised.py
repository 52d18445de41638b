"""Supervised training on labelled images: the source stage and the oracle of the benchmark.

Cross-entropy, when asked for with class weights, hard example mining (Shrivastava et al., CVPR 2016), label
smoothing (Szegedy et al., CVPR 2016) and stochastic weight averaging (Izmailov et al., UAI 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from panoda.config.section import Count, Positive, Probability, Section
from panoda.config.training import AugmentParams, ClassWeightParams, SourceTrainingParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.averaging import WeightAverage, first_averaged_step, recompute_batch_norm
from panoda.engine.losses import auxiliary_cross_entropy, cross_entropy, leave_out, ohem_cross_entropy
from panoda.engine.method import Method, Setup
from panoda.engine.resume_points import Stateful
from panoda.engine.task import Task
from panoda.models.core.segmenter import Segmenter


class OhemParams(Section):
    """Online hard example mining: only pixels below a confidence count."""

    threshold: Probability = 0.7
    """Pixels whose true-class probability lies below this are kept."""
    min_kept: Probability = 0.1
    """Share of labelled pixels kept at least."""


class SwaParams(Section):
    """Stochastic weight averaging: the mean of the weights along the end of training."""

    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.75
    """Share of the iterations before averaging begins."""
    every: Annotated[int, Field(ge=1)] = 100
    """Steps between the weights that are averaged."""
    lr: Positive | None = None
    """Constant learning rate from then on; null = the schedule goes on."""
    bn_update_batches: Count = 100
    """Training batches over which the batch norms' statistics are taken anew; 0 = keep the last ones."""


class SupervisedParams(SourceTrainingParams):
    """Supervised training on the labelled sources."""

    method: Literal["supervised"] = "supervised"
    """This method."""
    augment: AugmentParams = AugmentParams()
    """Augmentation."""
    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights."""
    ohem: OhemParams | None = None
    """Hard example mining, or null."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target distribution spread evenly over all classes, also for auxiliary heads."""
    swa: SwaParams | None = None
    """Weight averaging, or null. Averaged weights are kept if better on source val, or with select: last."""

    @model_validator(mode="after")
    def _averaged(self) -> SupervisedParams:
        if self.swa and int(self.swa.start * self.iterations) + self.swa.every > self.iterations:
            raise ValueError(
                f"swa averages nothing: it starts after {int(self.swa.start * self.iterations)} of "
                f"{self.iterations} iterations and takes weights every {self.swa.every}; lower start or every"
            )
        return self


class SupervisedTask(Task):
    """Cross-entropy; class weights, hard example mining and label smoothing when asked for."""

    def __init__(
        self,
        model: Any,
        batches: Callable[[int], Iterator[Batch]],
        *,
        weight: Tensor | None,
        ohem: tuple[float, float] | None,
        device: torch.device,
        label_smoothing: float = 0.0,
        average: WeightAverage | None = None,
        constant_rate: tuple[int, float] | None = None,
        norm_batches: Callable[[], Iterator[Batch]] | None = None,
        lacking: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> None:
        """Train ``model`` on ``batches(start_step)``; ``ohem`` is (threshold, min_kept) or None.

        ``lacking`` says which classes (B, K) the sources of a batch do not annotate; ``norm_batches`` gives
        the batches over which the averaged weights' batch norms take their statistics.
        """
        self.trained = model
        self.source = batches
        self.weight = weight
        self.ohem = ohem
        self.device = device
        self.label_smoothing = label_smoothing
        self.average = average
        self.constant_rate = constant_rate
        self.norm_batches = norm_batches
        self.lacking = lacking

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Labelled batches."""
        return self.source(start_step)

    def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """``loss/source_ce``, ``loss/auxiliary`` where the decoder has auxiliary heads, and their sum."""
        image = normalise(batch["image"].to(self.device, non_blocking=True))
        logits, _, auxiliary = self.trained(image, return_auxiliary=True)
        label = batch["label"].to(self.device, non_blocking=True)
        lacking = self.lacking(batch)
        logits = leave_out(logits, lacking)
        common: dict[str, Any] = {"weight": self.weight, "label_smoothing": self.label_smoothing}
        if self.ohem is None:
            loss = cross_entropy(logits, label, **common)
        else:
            loss = ohem_cross_entropy(logits, label, threshold=self.ohem[0], min_kept=self.ohem[1], **common)
        if not auxiliary:
            return {"loss/total": loss, "loss/source_ce": loss}
        extra = auxiliary_cross_entropy(auxiliary, label, lacking=lacking, **common)
        return {"loss/total": loss + extra, "loss/source_ce": loss, "loss/auxiliary": extra}

    def after_step(self, step: int) -> dict[str, Tensor]:
        """The averaged weights follow the model."""
        if self.average is not None:
            self.average.after_step(step)
        return {}

    def components(self) -> dict[str, Stateful]:
        """The model and its averaged weights."""
        average = {} if self.average is None else {"average": self.average.averaged}
        return {"model": self.trained, **average}

    def followers(self) -> list[Segmenter]:
        """The averaged weights."""
        return [] if self.average is None else [cast(Segmenter, self.average.averaged.module)]

    def finish(self) -> None:
        """Batch-norm statistics of the averaged weights over augmented training batches."""
        if self.average is None or self.norm_batches is None:
            return
        net = self.average.model
        images = (normalise(batch["image"].to(self.device)) for batch in self.norm_batches())
        recompute_batch_norm(net, images, lambda x: net(x, return_auxiliary=True))


def task(setup: Setup) -> SupervisedTask:
    """The task of a stage's run."""
    p: SupervisedParams = setup.params
    average, constant, norm_batches = None, None, None
    if p.swa is not None:
        start = first_averaged_step(p.iterations, p.swa.start)
        average = WeightAverage(setup.model, start_step=start, every=p.swa.every)
        constant = None if p.swa.lr is None else (start, p.swa.lr)
        if count := p.swa.bn_update_batches:
            norm_batches = setup.whole_batches(setup.source, p.augment, domain="norms", count=count)
    return SupervisedTask(
        setup.model,
        setup.batches(setup.source, p.augment, domain="source"),
        weight=setup.class_weights(p.class_weights),
        ohem=(p.ohem.threshold, p.ohem.min_kept) if p.ohem else None,
        device=setup.device,
        label_smoothing=p.label_smoothing,
        average=average,
        constant_rate=constant,
        norm_batches=norm_batches,
        lacking=setup.lacking,
    )


METHOD = Method(stage="pretrain", params=SupervisedParams, task=task)
