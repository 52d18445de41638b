"""Every encoder with every decoder that takes its maps, through one step of every stage.

Pairs of ``WHOLE`` hold each encoder and each decoder at least once and go through the stages themselves;
the others through the same tasks' losses, gradients and predictions, without files in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import HEIGHT, WIDTH, prepared

from panoda.config import (
    AugmentParams,
    EvaluateParams,
    ModelParams,
    OptimParams,
    PrototypeParams,
    PseudoLabelParams,
)
from panoda.inference.prediction import predict_features
from panoda.methods.alignment import AlignmentParams, AlignmentTask
from panoda.methods.mpa import MPAParams, MPATask, PrototypeLossParams
from panoda.methods.parts.adversarial import Adversary
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.prototypes import DomainPrototypes, PrototypeBank
from panoda.methods.supervised import SupervisedParams, SupervisedTask
from panoda.methods.teacher_mix import TeacherMixParams, TeacherMixTask
from panoda.models import create_model
from panoda.models.core.checkpoint import load_model
from panoda.models.core.segmenter import Segmenter
from panoda.stages.adapt import adapt
from panoda.stages.evaluate import evaluate
from panoda.stages.pretrain import pretrain
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.stages.warmup import warmup
from panoda.system.context import RunContext

VIT = "vit:vit_tiny_patch16_224"
ENCODERS = ("trans4pass_nano", "mit_b0", "pvt_v2_b0", VIT, "timm:convnext_atto")
DECODERS = ("dmlp", "dmlpv2", "segformer", "upernet", "fcn")
SETR = ("setr_naive", "setr_pup", "setr_mla")
PAIRS = [(e, d) for e in ENCODERS for d in DECODERS] + [(VIT, d) for d in SETR]
WHOLE = [
    ("trans4pass_nano", "dmlp"),
    ("mit_b0", "segformer"),
    ("pvt_v2_b0", "dmlpv2"),
    ("timm:convnext_atto", "fcn"),
    (VIT, "upernet"),
    *((VIT, decoder) for decoder in SETR),
]
CLASSES, WIDE = 13, 16
OPTIM = OptimParams(lr=1e-3, layer_decay=0.9, head_lr_factor=2.0)
CROP = AugmentParams(crop_height=32, crop_width=32)
MPA = PrototypeLossParams(weight=1.0, refresh_every=1, ema_momentum=0.5)


def named(pair: tuple[str, str]) -> str:
    return "-".join(pair)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("pairs")
    prepared(root / "source", {"train": 2, "val": 1}, erp=False)
    prepared(root / "target", {"train": 2, "test": 1}, erp=True, shade=25)
    return root


def test_the_lists_hold_everything():
    assert {e for e, _ in WHOLE} == set(ENCODERS) and {d for _, d in WHOLE} == {*DECODERS, *SETR}
    for decoder in SETR:
        with pytest.raises(ValueError, match="maps of one stride"):
            create_model("trans4pass_nano", num_classes=CLASSES, decoder=decoder)


@pytest.mark.parametrize("pair", WHOLE, ids=named)
def test_every_stage(pair, data, tmp_path):
    common = {"seed": 0, "context": RunContext()}
    train = {"source_train": data / "source/prepared/train", "target_train": data / "target/prepared/train"}
    checkpoints = [tmp_path / name / "model.safetensors" for name in ("pretrain", "warmup", "adapt")]
    metrics = pretrain(
        source_train=train["source_train"],
        source_val=data / "source/prepared/val",
        out=tmp_path / "pretrain",
        model=ModelParams(encoder=pair[0], decoder=pair[1], width=WIDE),
        params=SupervisedParams(iterations=1, batch_size=2, optim=OPTIM, augment=CROP),
        **common,
    )
    assert math.isfinite(metrics["miou/source_val"])
    metrics = warmup(
        checkpoint=checkpoints[0],
        **train,
        out=tmp_path / "warmup",
        params=AlignmentParams(iterations=1, batch_size=2, optim=OPTIM, augment_source=CROP),
        **common,
    )
    assert metrics["loss/adversarial"] > 0 and ("loss/auxiliary" in metrics) == has_auxiliary(pair[1])
    banks = {"checkpoint": checkpoints[1], **train, "pseudo_labels": tmp_path / "labels"}
    pseudo_labels(
        checkpoint=checkpoints[1],
        target_train=train["target_train"],
        out=tmp_path / "labels",
        params=PseudoLabelParams(scales=(1.0,), flip=False, quantile=0.0),
        context=RunContext(),
    )
    one = PrototypeParams(scales=(1.0,))
    metrics = prototypes(**banks, out=tmp_path / "prototypes", params=one, context=RunContext())
    assert metrics["classes_target"] > 0  # prediction and pseudo-label are of the same model
    metrics = adapt(
        **banks,
        prototypes=tmp_path / "prototypes",
        out=tmp_path / "adapt",
        params=MPAParams(
            iterations=1,
            batch_size=2,
            optim=OPTIM,
            augment_source=CROP,
            mpa=MPA,
            adversarial_weight=0.01,
        ),
        **common,
    )
    assert metrics["loss/mpa_source"] + metrics["loss/mpa_target"] > 0
    assert all(math.isfinite(v) for v in metrics.values())
    metrics = evaluate(
        models={"source_only": checkpoints[0], "round1": checkpoints[2]},
        source_val=data / "source/prepared/val",
        target_test=data / "target/prepared/test",
        out=tmp_path / "evaluate",
        params=EvaluateParams(sliding={"window": 32, "stride": 24}, flip=True, pictures=0),
        context=RunContext(),
    )
    assert math.isfinite(metrics["source_only/miou/target_test"])
    weights = [load_file(path) for path in checkpoints]
    for part in ("encoder.", "decoder."):
        keys = [k for k in weights[0] if k.startswith(part) and weights[0][k].ndim > 1]
        for before, after in zip(weights, weights[1:], strict=False):
            assert any(not torch.equal(before[k], after[k]) for k in keys), part
    model, card = load_model(checkpoints[2], num_classes=CLASSES)
    assert card.stage == "adapt" and model.feature_channels == WIDE


def has_auxiliary(decoder: str) -> bool:
    return decoder == "upernet" or decoder in SETR


def batch(size: tuple[int, int]) -> dict:
    """Two images, half of each of class 3 and 5, a stripe ignored."""
    label = torch.full((2, *size), 3)
    label[..., size[1] // 2 :] = 5
    label[:, :4] = 255
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    rest = {"valid": torch.ones(2, *size, dtype=torch.bool), "indices": torch.tensor([0, 1])}
    return {"image": image, "label": label, "ids": ["a", "b"], **rest}


def no_batches(start: int) -> Iterator:
    return iter(())


def step(task) -> dict[str, torch.Tensor]:
    """Losses, gradients and what follows the model; every weight takes part."""
    source, target = batch((32, 32)), batch((HEIGHT, WIDTH))
    values = task.losses(0, source if isinstance(task, SupervisedTask) else (source, target))
    task.trained.zero_grad()
    values["loss/total"].backward()
    idle = [n for n, p in task.trained.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, idle
    assert all(bool(p.grad.isfinite().all()) for p in task.trained.parameters() if p.requires_grad)
    return {**values, **task.after_step(0)}


def bank_of(model: Segmenter) -> PrototypeBank:
    domain = DomainPrototypes(CLASSES, model.feature_channels)
    sample = batch((HEIGHT, WIDTH))
    logits, features = predict_features(model, sample["image"], scales=(0.5, 1.0), wrap=True)
    assert logits.shape == (2, CLASSES, HEIGHT, WIDTH)
    stride = model.feature_stride
    assert features.shape == (2, WIDE, -(-HEIGHT // stride), -(-WIDTH // stride))
    domain.update(features, sample["label"], sample["label"])
    assert domain.seen().nonzero().flatten().tolist() == [3, 5]
    return PrototypeBank(domain.mean(), domain.seen(), ema_momentum=0.5)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in WHOLE], ids=named)
def test_the_tasks_of_every_stage(pair):
    torch.manual_seed(0)
    model = create_model(pair[0], num_classes=CLASSES, decoder=pair[1], width=WIDE).train()
    common = {"weight": None, "device": torch.device("cpu")}
    values = step(SupervisedTask(model, no_batches, ohem=None, label_smoothing=0.1, **common))
    assert ("loss/auxiliary" in values) == has_auxiliary(pair[1])
    adversary = Adversary(Discriminator(CLASSES), lr=1e-4)
    extra = {"adversarial_weight": 0.1, "colour_transfer": 1.0}
    values = step(AlignmentTask(model, adversary, no_batches, no_batches, **extra, **common))
    assert values["loss/discriminator"] > 0
    params = MPAParams(iterations=1, batch_size=2, optim=OPTIM, mpa=MPA)
    task = MPATask(
        model, bank_of(model), no_batches, no_batches, params=params, adversary=adversary, **common
    )
    values = step(task)
    assert values["loss/mpa_source"] + values["loss/mpa_target"] > 0
    assert torch.isfinite(values["loss/total"])
    params = TeacherMixParams(iterations=1, batch_size=2, optim=OPTIM, threshold=0.0)
    values = step(TeacherMixTask(model, no_batches, no_batches, params=params, warp=None, **common))
    assert values["teacher/kept_share"] == 1 and torch.isfinite(values["loss/total"])
