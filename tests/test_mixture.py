"""Several labelled sources: shares, ids, sizes, warping, and every stage on two of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save
from small_data import HEIGHT, WIDTH, prepared

from panoda.config import (
    AugmentParams,
    EvaluateParams,
    ModelParams,
    OptimParams,
    PrototypeParams,
    PseudoLabelParams,
)
from panoda.data.loading.loader import training_batches
from panoda.data.loading.mixture import Mixture, source_splits, training_source
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.pseudo import PseudoLabelWriter
from panoda.data.loading.transforms import JointTransform
from panoda.engine.method import Setup, get_method
from panoda.methods.alignment import AlignmentParams
from panoda.methods.mpa import MPAParams
from panoda.methods.parts.sphere_warp import warp_onto_sphere
from panoda.methods.supervised import SupervisedParams
from panoda.methods.teacher_mix import TeacherMixParams
from panoda.models.core.registry import create_model
from panoda.stages.adapt import adapt
from panoda.stages.evaluate import evaluate
from panoda.stages.pretrain import pretrain
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.stages.warmup import warmup
from panoda.system.context import RunContext
from panoda.system.errors import DataError

SOURCES = {"source": 1.0, "panoramas": 3.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """source: pinhole; more_sources/panoramas: ERP; target: unlabelled train and labelled test."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("mixture")
    for name, erp, splits in (
        ("source", False, {"train": 4, "val": 2}),
        ("more_sources/panoramas", True, {"train": 6, "val": 3}),
        ("target", True, {"train": 3, "test": 2}),
    ):
        made = prepared(root / "made" / name, splits, erp=erp, labels=name != "target", shade=20 * erp)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        made.rename(root / name)
    return root


@pytest.fixture
def mixture(data) -> Mixture:
    opened = training_source(data / "source/train", data / "more_sources", SOURCES)
    assert isinstance(opened, Mixture)
    return opened


def drawn(dataset, count: int, *, start: int = 0, **keywords) -> list[str]:
    batches = training_batches(
        dataset,
        batch_size=2,
        augment=JointTransform(hflip=0.0, **keywords),
        seed=5,
        start_step=start,
        num_steps=count,
        workers=0,
    )
    return [name for batch in batches for name in batch["ids"]]


def test_every_source_has_its_share_at_any_time(mixture):
    names = drawn(mixture, 40)
    for n in range(1, 81):
        share = sum(name.startswith("panoramas/") for name in names[:n])
        assert abs(share - 0.75 * n) <= 1
    # Each source runs through epochs of its own: nothing twice before everything once.
    own = [name for name in names if name.startswith("source/")]
    assert len(set(own[:4])) == 4 and len(set(own[4:8])) == 4
    assert drawn(mixture, 10, start=30) == names[60:]


def test_three_sources_share_by_weight(data):
    parts = {name: PreparedSplit(data / "source/train") for name in ("source", "b", "c")}
    names = drawn(Mixture(parts, {"source": 1.0, "b": 2.0, "c": 5.0}), 400)
    counts = [sum(name.startswith(f"{part}/") for name in names) for part in parts]
    assert np.abs(np.array(counts) - [100, 200, 500]).max() <= 2


def test_one_source_is_the_split_itself(data):
    alone = training_source(data / "source/train", None, None)
    assert isinstance(alone, PreparedSplit)
    only = Mixture({"source": alone}, {"source": 2.0})
    assert [f"source/{name}" for name in drawn(alone, 6)] == drawn(only, 6)


def test_samples_classes_and_circles_of_a_mixture(mixture, data):
    panoramas = PreparedSplit(data / "more_sources/panoramas/train")
    assert len(mixture) == 10 and mixture.offsets == (0, 4)
    sample = mixture[4]
    assert sample["id"] == f"panoramas/{panoramas.ids[0]}" and sample["index"] == 4
    assert torch.equal(sample["image"], panoramas[0]["image"])
    assert [mixture.wraps(i) for i in (0, 3, 4, 9)] == [False, False, True, True]
    pinhole = PreparedSplit(data / "source/train")
    shares = [p.class_pixels / p.class_pixels.sum() for p in (pinhole, panoramas)]
    expected = 0.25 * shares[0] + 0.75 * shares[1]
    assert np.allclose(mixture.class_pixels / mixture.class_pixels.sum(), expected, atol=1e-3)


def test_yaw_roll_turns_only_panoramas(mixture):
    batches = training_batches(
        mixture,
        batch_size=1,
        augment=JointTransform(hflip=0.0, yaw_roll=True),
        seed=0,
        start_step=0,
        num_steps=16,
        workers=0,
    )
    moved = set()
    for batch in batches:
        original = mixture[int(batch["indices"][0])]["image"]
        moved.add((batch["ids"][0].split("/")[0], bool((batch["image"][0] != original).any())))
    assert ("panoramas", True) in moved and ("source", False) in moved and ("source", True) not in moved


def test_only_pinhole_samples_are_warped(mixture, data):
    target = PreparedSplit(data / "target/test")
    warp = warp_onto_sphere(mixture, target)
    assert warp is not None
    image, label = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    rows, columns = (torch.arange(side).expand(2, -1) + 0.5 for side in (HEIGHT, WIDTH))
    placed, ids = warp(image, label, {"indices": torch.tensor([0, 4])}, {"rows": rows, "columns": columns})
    assert placed.shape == (2, 3, HEIGHT, WIDTH) and ids.shape == (2, HEIGHT, WIDTH)
    flat = ids[1] == 0
    assert flat.sum() == 16 * 16 and flat[:, flat.any(dim=0)].any(dim=1).sum() == 16  # a square, unwarped
    assert (ids[0] == 0).sum() != 16 * 16
    only = Mixture({"panoramas": mixture.parts["panoramas"]}, {"panoramas": 1.0})
    assert warp_onto_sphere(only, target) is None


def test_sources_that_do_not_fit(data, tmp_path):
    with pytest.raises(DataError, match=r"more_sources/nowhere/train"):
        source_splits(data / "source/train", data / "more_sources", {"source": 1.0, "nowhere": 1.0})
    wide = prepared(tmp_path / "wide", {"train": 2}, erp=False)
    small = PreparedSplit(data / "source/train")
    other = PreparedSplit(wide / "train")
    other.label_space = "cs19"
    with pytest.raises(DataError, match="cs19.*cs13.*same label_space"):
        Mixture({"source": small, "b": other}, {"source": 1.0, "b": 1.0})


def test_different_sizes_need_a_crop(data, tmp_path):
    tall = prepared(tmp_path / "tall", {"train": 2}, erp=False, size=(64, 64))
    both = Mixture(
        {"source": PreparedSplit(data / "source/train"), "tall": PreparedSplit(tall / "train")},
        {"source": 1.0, "tall": 1.0},
    )
    with pytest.raises(ValueError, match="64x32 and 64x64 pixels.*set crop_height and crop_width"):
        drawn(both, 1)
    assert len(drawn(both, 3, crop_height=32, crop_width=32)) == 6


def test_every_stage_on_two_sources(data, tmp_path):
    sources = {"more_sources": data / "more_sources", "sources": SOURCES}
    optim = OptimParams(lr=1e-3)
    augment = AugmentParams(crop_height=32, crop_width=32)
    common = {"seed": 0, "context": RunContext(), **sources}
    train = {"source_train": data / "source/train", "target_train": data / "target/train"}
    start = pretrain(
        source_train=train["source_train"],
        source_val=data / "source/val",
        out=tmp_path / "pretrain",
        model=ModelParams(),
        params=SupervisedParams(iterations=2, batch_size=4, optim=optim, augment=augment, validate_every=1),
        **common,
    )
    assert {"miou/source_val", "miou/panoramas_val"} <= set(start)
    warmup(
        checkpoint=tmp_path / "pretrain/model.safetensors",
        **train,
        out=tmp_path / "warmup",
        params=AlignmentParams(iterations=2, batch_size=2, optim=optim, augment_source=augment),
        **common,
    )
    checkpoint = tmp_path / "warmup/model.safetensors"
    pseudo_labels(
        checkpoint=checkpoint,
        target_train=train["target_train"],
        out=tmp_path / "labels",
        params=PseudoLabelParams(scales=(1.0,)),
        context=RunContext(),
    )
    banks = {"checkpoint": checkpoint, **train, "pseudo_labels": tmp_path / "labels"}
    one = PrototypeParams(scales=(1.0,))
    prototypes(**banks, out=tmp_path / "prototypes", params=one, context=RunContext(), **sources)
    alone = tmp_path / "alone"
    prototypes(**banks, out=alone, params=one, context=RunContext())
    # Images of all sources, and of the first alone.
    seen = [
        pd.read_csv(folder / "classes.csv")["source_images"].max()
        for folder in (tmp_path / "prototypes", alone)
    ]
    assert seen == [10, 4]
    adapt(
        **banks,
        prototypes=tmp_path / "prototypes",
        out=tmp_path / "adapt",
        params=TeacherMixParams(
            iterations=2, batch_size=2, optim=optim, augment_source=augment, erp_warp=1.0
        ),
        **common,
    )
    metrics = evaluate(
        models={"source_only": tmp_path / "pretrain/model.safetensors"},
        source_val=data / "source/val",
        target_test=data / "target/test",
        out=tmp_path / "evaluate",
        params=EvaluateParams(),
        context=RunContext(),
        **sources,
    )
    assert math.isclose(metrics["miou/panoramas_val"], start["miou/panoramas_val"], abs_tol=1e-6)
    assert math.isclose(metrics["miou/source_val"], start["miou/source_val"], abs_tol=1e-6)


LACKED = 2


@pytest.fixture
def partial(data) -> Mixture:
    """The panoramas annotate no class ``LACKED``; class 9 has pixels in neither source."""
    parts = {
        name: PreparedSplit(data / folder / "train")
        for name, folder in (("source", "source"), ("panoramas", "more_sources/panoramas"))
    }
    for part, lacked in ((parts["source"], [9]), (parts["panoramas"], [9, LACKED])):
        assert part.class_pixels[LACKED] > 0
        part.class_pixels = part.class_pixels.copy()
        part.class_pixels[lacked] = 0
    return Mixture(parts, SOURCES)


def test_what_only_one_source_annotates(partial, mixture):
    lacking = partial.lacking(torch.tensor([0, 3, 4, 9]))
    assert lacking[:, LACKED].tolist() == [False, False, True, True]
    assert lacking.sum() == 2  # class 9, which no source has, stays in every softmax
    assert partial.lacking(torch.tensor([0])).sum() == 0


@pytest.mark.parametrize("method", ["supervised", "alignment", "mpa", "teacher_mix"])
def test_no_method_teaches_that_a_lacked_class_is_absent(partial, data, method, tmp_path):
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=partial.num_classes)
    optim = OptimParams(lr=1e-3)
    common = {"iterations": 2, "batch_size": 2, "optim": optim}
    params = {
        "supervised": lambda: SupervisedParams(**common),
        "alignment": lambda: AlignmentParams(**common, adversarial_weight=0.0),
        "mpa": lambda: MPAParams(**common, mpa={"weight": 0.0}),
        "teacher_mix": lambda: TeacherMixParams(**common, class_mix=1.0, threshold=1.0),
    }[method]()
    target = PreparedSplit(data / "target/train")
    folder = tmp_path / "pseudo_labels"
    folder.mkdir()
    with PseudoLabelWriter(folder, target) as writer:  # nothing is labelled
        for i in range(len(target)):
            label = torch.full((HEIGHT, WIDTH), 255, dtype=torch.uint8)
            writer.add(target[i]["id"], label, torch.zeros_like(label))
    bank = torch.zeros(partial.num_classes, model.feature_channels)
    (tmp_path / "prototypes.safetensors").write_bytes(
        save({"mutual": bank, "seen": torch.zeros(len(bank), dtype=torch.bool)})
    )
    task = get_method(method).task(
        Setup(method, model, params, 0, RunContext(), partial, target, folder, tmp_path)
    )
    drawn_batches = training_batches(
        partial,
        batch_size=2,
        augment=JointTransform(hflip=0.0),
        seed=0,
        start_step=0,
        num_steps=20,
        workers=0,
    )
    panoramas = next(batch for batch in drawn_batches if bool((batch["indices"] >= 4).all()))
    batch = panoramas
    if method != "supervised":
        batch = panoramas, next(iter(task.target(0)))
    task.losses(0, batch)["loss/total"].backward()
    gradient = next(p.grad for n, p in model.named_parameters() if p.shape == (partial.num_classes,))
    assert gradient[LACKED] == 0 and bool((gradient[[0, 1]] != 0).all())
