"""Fine-tuning and the linear probe, as MAE's released code does them (arXiv 2111.06377, appendix A).

Deviation: with a class token, the layer-wise rates are timm's, which count the last norm to the last block; the
released code counts it to the head. With global pooling, the default, there is no difference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from timm.loss import SoftTargetCrossEntropy
from timm.optim import Lars, param_groups_layer_decay
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from panoda.classification.data import ClassBatch, ClassFolder, random_batches, read_train_and_val, seeded
from panoda.classification.evaluate import Accuracy, accuracy, evaluation_transform
from panoda.classification.files import ClassifierCard, save_classifier
from panoda.classification.model import Probed, build_encoder, input_of, read_encoder, with_head
from panoda.classification.params import FinetuneParams, ProbeParams
from panoda.engine.loop import LoopState, run_loop
from panoda.engine.seeds import stream_seed
from panoda.engine.task import Task
from panoda.system.context import RunContext
from panoda.system.files import staged_directory, write_json

log = logging.getLogger("panoda")
_LARGE, _HUGE = 1024, 1280
"""Widths from which the published recipe changes."""


def judge(
    data: Path, out: Path, params: FinetuneParams | ProbeParams, *, context: RunContext
) -> dict[str, float]:
    """Train a classifier from an encoder, and say how often it is right on val.

    Writes model.safetensors, history.csv, metrics.json and classes.csv into ``out``, all or nothing.

    Returns:
        ``top1`` and ``top5`` of the last weights on val, shares of its images.

    Raises:
        ValueError: data, encoder or parameters that do not go together; nothing is written then.
    """
    train, val = read_train_and_val(data)
    encoder = read_encoder(params.encoder, heads=params.heads)
    torch.manual_seed(stream_seed(params.seed, "model"))
    net, arguments = build_encoder(
        encoder,
        img_size=params.img_size,
        global_pool=params.global_pool,
        drop_path=_drop_path(params, encoder.arguments.get("embed_dim", 0)),
        random=params.random,
    )
    size, mean, std = input_of(net, encoder.name, arguments)
    width, count = int(net.num_features), len(train.classes)
    model: Any = Probed(net, count) if isinstance(params, ProbeParams) else with_head(net, count)
    model.to(context.device)
    task = ClassifyTask(model, train, params, size=size, mean=mean, std=std, context=context)
    look = evaluation_transform(size, mean, std)

    latest: dict[int, Accuracy] = {}

    def validate(state: LoopState) -> dict[str, float]:
        latest.clear()
        latest[state.step] = accuracy(model, val, look, batch_size=params.batch_size, context=context)
        model.train()
        return latest[state.step].metrics()

    per_epoch = max(1, len(train) // params.batch_size)
    steps = params.epochs * per_epoch
    optimizer = _optimizer(model, params, width)
    peak = params.base_lr * params.batch_size / 256
    if isinstance(params, ProbeParams) and peak * steps < 500:
        log.warning(
            "the probe's weights can hardly move: %d steps at a rate of %.3g, where LARS takes a thousandth of it; "
            "set base_lr to about %.3g, which gives the published rate of 6.4",
            *(steps, peak, 6.4 * 256 / params.batch_size),
        )
    warmup, floor = round(params.warmup_epochs * per_epoch), params.min_lr / peak
    state = run_loop(
        task,
        optimizer=optimizer,
        scheduler=half_cosine(optimizer, steps=steps, warmup=warmup, floor=floor),
        num_steps=steps,
        seed=stream_seed(params.seed, params.action),
        clip_norm=getattr(params, "clip_norm", 0.0),
        context=context,
        description=params.action,
        validate=validate,
        validate_every=params.validate_epochs * per_epoch,
    )
    # A run that was killed right before it wrote its result has validated already.
    last = latest.get(state.step) or accuracy(model, val, look, batch_size=params.batch_size, context=context)
    card = ClassifierCard(
        name=encoder.name,
        arguments=arguments,
        action=params.action,
        classes=train.classes,
        num_classes=count,
        img_size=size,
        mean=mean,
        std=std,
        source=encoder.source,
        params=params.model_dump(mode="json"),
    )
    with staged_directory(out) as folder:
        save_classifier(folder / "model.safetensors", model, card)
        state.write_history(folder / "history.csv")
        write_json(folder / "metrics.json", last.metrics())
        last.write(folder / "classes.csv")
    return last.metrics()


class ClassifyTask(Task):
    """Cross-entropy with hard labels, or with the soft ones of mixed images."""

    trained: Any

    def __init__(
        self,
        model: Any,
        train: ClassFolder,
        params: FinetuneParams | ProbeParams,
        *,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        context: RunContext,
    ) -> None:
        """Train ``model`` on ``train``, cropped to squares of ``size`` pixels."""
        self.trained = model.train()
        self.train, self.params, self.context = train, params, context
        self.transform = training_transform(params, size, mean, std)
        self.mixup, self.smoothing = None, 0.0
        if isinstance(params, FinetuneParams):
            self.smoothing = params.label_smoothing
            if params.mixup or params.cutmix:
                self.mixup = Mixup(
                    mixup_alpha=params.mixup,
                    cutmix_alpha=params.cutmix,
                    label_smoothing=params.label_smoothing,
                    num_classes=len(train.classes),
                )

    def batches(self, start_step: int) -> Iterator[ClassBatch]:
        """Random batches; the loop stops taking them."""
        per_epoch = max(1, len(self.train) // self.params.batch_size)
        return random_batches(
            self.train,
            self.transform,
            batch_size=self.params.batch_size,
            seed=self.params.seed,
            steps=range(start_step, self.params.epochs * per_epoch),
            workers=self.context.workers,
            pin=self.context.device.type == "cuda",
        )

    def losses(self, step: int, batch: ClassBatch) -> dict[str, Tensor]:
        """Cross-entropy, the mean over the images."""
        images = batch["image"].to(self.context.device, non_blocking=True)
        labels = batch["label"].to(self.context.device, non_blocking=True)
        if self.mixup is None:
            loss = F.cross_entropy(self.trained(images), labels, label_smoothing=self.smoothing)
            return {"loss/total": loss}
        with seeded(stream_seed(self.params.seed, "mix", step)):
            images, soft = self.mixup(images.clone(), labels)
        return {"loss/total": SoftTargetCrossEntropy()(self.trained(images), soft)}


def training_transform(
    params: FinetuneParams | ProbeParams, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Any:
    """Augmentation by timm: strong for fine-tuning; random resized crop and mirror for the probe."""
    common: dict[str, Any] = {"is_training": True, "interpolation": "bicubic", "mean": mean, "std": std}
    if isinstance(params, ProbeParams):
        return create_transform(size, color_jitter=0.0, **common)
    transform = create_transform(
        size,
        scale=params.crop_scale,
        color_jitter=0.0,
        auto_augment=params.rand_augment,
        re_prob=params.random_erasing,
        re_mode="pixel",
        **common,
    )
    for operation in (o for part in transform.transforms if isinstance(part, RandAugment) for o in part.ops):
        if operation.name.startswith("Posterize"):
            operation.magnitude_max = 9.99  # at 10 timm keeps 0 bits, which Pillow refuses
    return transform


def half_cosine(optimizer: torch.optim.Optimizer, *, steps: int, warmup: int, floor: float) -> LambdaLR:
    """Linear warm-up from 0, then half a cosine down to ``floor`` times the peak, step by step."""

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        passed = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * passed))

    return LambdaLR(optimizer, factor)


def _optimizer(model: Any, params: FinetuneParams | ProbeParams, width: int) -> torch.optim.Optimizer:
    """LARS over the probe's head, or AdamW with a rate for every layer; at rate x batch / 256."""
    lr = params.base_lr * params.batch_size / 256
    if isinstance(params, ProbeParams):
        layer = model.head[1]
        # As published: the layer-wise adaptation is for matrices.
        groups = [{"params": [layer.weight], "always_adapt": True}, {"params": [layer.bias]}]
        return Lars(groups, lr=lr, momentum=0.9, weight_decay=0.0)
    decay = params.layer_decay or (0.65 if width < _LARGE else 0.75)
    groups = param_groups_layer_decay(
        model, params.weight_decay, no_weight_decay_list=model.no_weight_decay(), layer_decay=decay
    )
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale")
    return torch.optim.AdamW(groups, lr=lr)


def _drop_path(params: FinetuneParams | ProbeParams, width: int) -> float:
    if not isinstance(params, FinetuneParams):
        return 0.0
    if params.drop_path is not None:
        return params.drop_path
    return 0.1 if width < _LARGE else 0.2 if width < _HUGE else 0.3
