"""The training stages on tiny data: what they write, what they read, and what survives a kill."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_data import prepared
from typer.testing import CliRunner

from panoda.cli.app import app
from panoda.config import (
    AugmentParams,
    EvaluateParams,
    ModelParams,
    OptimParams,
    PrototypeParams,
    PseudoLabelParams,
)
from panoda.data.loading.mixture import mean_colours
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.pseudo import PseudoLabelSplit, stored_labels
from panoda.inference.prediction import predict_logits
from panoda.labels import IGNORE_INDEX
from panoda.methods.alignment import AlignmentParams
from panoda.methods.mpa import MPAParams, PrototypeLossParams
from panoda.methods.parts.prototypes import read_prototypes
from panoda.methods.source_free import SourceFreeParams
from panoda.methods.ssl import SSLParams
from panoda.methods.supervised import SupervisedParams
from panoda.methods.teacher_mix import TeacherMixParams
from panoda.models.core.checkpoint import load_model, read_card
from panoda.stages.adapt import adapt
from panoda.stages.evaluate import evaluate
from panoda.stages.pretrain import pretrain
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.stages.report import report
from panoda.stages.rounds import rounds
from panoda.stages.warmup import warmup
from panoda.system.context import MetricLogger, RunContext

OPTIM = OptimParams(lr=2e-3, clip_norm=5.0)
PRETRAIN = SupervisedParams(iterations=30, batch_size=4, optim=OPTIM, validate_every=10)
LABELS = PseudoLabelParams(scales=(1.0,))
PROTOTYPES = PrototypeParams(scales=(1.0,))


STEPS = {"iterations": 4, "batch_size": 2, "optim": OptimParams(lr=5e-4)}
ROLLED = AugmentParams(yaw_roll=True, jitter=0.2)
MPA = PrototypeLossParams(weight=0.01, ema_momentum=0.5, refresh_every=2)


def adapt_params(**changes) -> TeacherMixParams:
    base = {"augment_target": ROLLED, "erp_warp": 0.5, "class_colour_transfer": 0.5, "threshold": 0.5}
    return TeacherMixParams(**{**STEPS, **base, **changes})


def mpa_params(**changes) -> MPAParams:
    return MPAParams(**{**STEPS, "augment_target": ROLLED, "mpa": MPA, **changes})


@dataclass
class World:
    source: Path
    target: Path
    out: Path

    @property
    def train(self) -> dict[str, Path]:
        return {"source_train": self.source / "train", "target_train": self.target / "train"}

    @property
    def checkpoint(self) -> Path:
        return self.out / "pretrain" / "model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("stages")
    source = prepared(root / "source", {"train": 6, "val": 2}, erp=False)
    target = prepared(root / "target", {"train": 4}, erp=True, labels=False, shade=25)
    here = World(source, target, root / "out")
    metrics = pretrain(
        source_train=source / "train",
        source_val=source / "val",
        out=here.out / "pretrain",
        model=ModelParams(),
        params=PRETRAIN,
        seed=0,
        context=RunContext(state_dir=root / "state", checkpoint_every=5),
    )
    assert metrics["miou/source_val"] > 0.35  # chance is about 0.1: it learned
    pseudo_labels(
        checkpoint=here.checkpoint,
        target_train=here.train["target_train"],
        out=here.out / "pseudo_labels",
        params=LABELS,
        context=RunContext(),
    )
    prototypes(
        checkpoint=here.checkpoint,
        **here.train,
        pseudo_labels=here.out / "pseudo_labels",
        out=here.out / "prototypes",
        params=PROTOTYPES,
        context=RunContext(),
    )
    return here


@pytest.mark.parametrize("sums", [False, True])
def test_pseudo_labels_hear_both_versions_of_an_image(world, tmp_path, sums):
    params = LABELS.model_copy(update={"source_colours": 2.0, "quantile": 0.0, "prototype_sums": sums})
    train = world.train["target_train"]
    out = tmp_path / "labels"
    pseudo_labels(
        checkpoint=world.checkpoint, target_train=train, out=out, params=params, context=RunContext()
    )
    split = PreparedSplit(train)
    stored = PseudoLabelSplit(split, out)
    model, _ = load_model(world.checkpoint)
    options = {"scales": params.scales, "flip": params.flip, "wrap": split.full_circle}
    changed = 0
    for index in range(len(split)):
        image, valid = split[index]["image"][None], split[index]["valid"][None]
        label = predict_logits(model, image, **options, source_colours=2.0, valid=valid).argmax(dim=1)[0]
        kept = stored[index]["label"] != IGNORE_INDEX
        assert torch.equal(stored[index]["label"][kept], label[kept])
        changed += int((predict_logits(model, image, **options).argmax(dim=1)[0] != label).sum())
    assert changed > 0


def _adapt(world: World, out: Path, params: MPAParams, **changes) -> dict[str, float]:
    keywords = {
        "checkpoint": world.checkpoint,
        **world.train,
        "pseudo_labels": world.out / "pseudo_labels",
        "prototypes": world.out / "prototypes",
        "out": out,
        "params": params,
        "seed": 0,
        "context": RunContext(),
    }
    return adapt(**{**keywords, **changes})


def _same_weights(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return all(torch.equal(first[k], second[k]) for k in first)


def test_pretrain_writes_what_it_promises_and_keeps_the_best(world):
    out = world.out / "pretrain"
    assert sorted(p.name for p in out.iterdir()) == [
        "history.csv",
        "loss_spikes.csv",
        "metrics.json",
        "model.safetensors",
        "pictures",
    ]
    history = pd.read_csv(out / "history.csv")
    metrics = json.loads((out / "metrics.json").read_text())
    assert history["miou/source_val"].max() == pytest.approx(metrics["miou/source_val"], abs=1e-5)
    assert {"step", "loss/total", "lr", "grad_norm"} <= set(history)
    model, card = load_model(world.checkpoint, num_classes=13)
    assert card.stage == "pretrain" and card.params["pretrain"]["iterations"] == 30
    assert model.colours == card.colours == mean_colours(PreparedSplit(world.source / "train"))


def test_a_killed_pretrain_resumes_bit_identical(world, tmp_path, monkeypatch):
    from panoda.engine.step import Stepper

    keywords = {
        "source_train": world.source / "train",
        "source_val": world.source / "val",
        "out": tmp_path / "out",
        "model": ModelParams(),
        "params": PRETRAIN,
        "seed": 0,
        "context": RunContext(state_dir=tmp_path / "state", log_every=1, checkpoint_every=2),
    }
    original = Stepper.__call__

    def dying(stepper, step, batch):
        if step == 17:
            raise KeyboardInterrupt
        return original(stepper, step, batch)

    monkeypatch.setattr(Stepper, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(**keywords)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Stepper, "__call__", original)
    pretrain(**keywords)
    assert _same_weights(tmp_path / "out/model.safetensors", world.checkpoint)


def test_warmup_aligns_or_passes_through(world, tmp_path):
    params = AlignmentParams(iterations=2, batch_size=2, optim=OPTIM, colour_transfer=0.5)
    keywords = {"checkpoint": world.checkpoint, **world.train, "seed": 0, "context": RunContext()}
    metrics = warmup(**keywords, out=tmp_path / "one", params=params)
    assert {"loss/source_ce", "loss/adversarial", "loss/discriminator"} <= set(metrics)
    assert not _same_weights(tmp_path / "one/model.safetensors", world.checkpoint)
    warmup(**keywords, out=tmp_path / "none", params=params.model_copy(update={"iterations": 0}))
    assert _same_weights(tmp_path / "none/model.safetensors", world.checkpoint)


def test_a_run_without_adaptation_is_reported_as_one(world, tmp_path):
    """Scenarios of supervised training: both stages pass the model through, and the page says so."""
    idle = {stage: {"iterations": 0} for stage in ("warmup", "adapt")}
    warmup(
        checkpoint=world.checkpoint,
        **world.train,
        out=tmp_path / "warmup",
        params=AlignmentParams(iterations=0, batch_size=1, optim=OPTIM),
        seed=0,
        context=RunContext(),
    )
    passed = tmp_path / "warmup/model.safetensors"
    _adapt(world, tmp_path / "adapt", adapt_params(iterations=0, erp_warp=0.0), checkpoint=passed)
    evaluate(
        models={
            "source_only": world.checkpoint,
            "warmup": passed,
            "round1": tmp_path / "adapt/model.safetensors",
        },
        source_val=world.source / "val",
        target_test=world.source / "val",
        out=tmp_path / "evaluate",
        params=EvaluateParams(pictures=1),
        context=RunContext(),
    )
    models = json.loads((tmp_path / "evaluate/models.json").read_text())
    same = {name: one["same_weights_as"] for name, one in models.items()}
    assert same == {"source_only": None, "warmup": "source_only", "round1": "source_only"}
    report(outputs=tmp_path, params=idle, provenance={}, out=tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    assert "Without adaptation, " in page and "adapted to" not in page and "Adapted, round" not in page
    assert "2 of the 2 target test images are images of source val as well" in page


def test_pseudo_labels_keep_the_confident_half(world):
    folder = world.out / "pseudo_labels"
    table = pd.read_csv(folder / "classes.csv")
    seen = table[table.predicted_pixels > 0]
    assert (seen.kept_share >= 0.5).all() and (seen.threshold <= 0.9).all()
    split = PseudoLabelSplit(PreparedSplit(world.target / "train"), folder)
    labels = torch.stack([split[i]["label"] for i in range(len(split))])
    stored = {name: level for name, _, level in stored_labels(folder, split.prepared, range(len(split)))}
    confidence = torch.stack([torch.from_numpy(stored[name]) for name in split.ids])
    counts = torch.bincount(labels.flatten().long(), minlength=256)[:13]
    assert counts.tolist() == table.kept_pixels.tolist()
    for k in torch.unique(labels[labels != 255]).tolist():
        assert confidence[labels == k].min() >= round(255 * table.threshold[k])


@pytest.mark.parametrize("sums", [False, True])
def test_pseudo_labels_of_perspective_views(world, tmp_path, monkeypatch, sums):
    from panoda.inference import prediction

    seen = []
    whole = prediction.over_views

    def spy(images, function, views, **band):
        seen.append((views.fov_deg, views.share, band["lat_top"], band["lat_bottom"]))
        return whole(images, function, views, **band)

    monkeypatch.setattr(prediction, "over_views", spy)
    changed = {"views": {"fov_deg": 60.0, "share": 0.25}, "prototype_sums": sums, "scales": (1.0,)}
    metrics = pseudo_labels(
        checkpoint=world.checkpoint,
        target_train=world.train["target_train"],
        out=tmp_path / "labels",
        params=PseudoLabelParams.model_validate(LABELS.model_dump() | changed),
        context=RunContext(),
    )
    band = PreparedSplit(world.target / "train").band
    assert 0.4 < metrics["kept_share"] <= 1 and set(seen) == {(60.0, 0.25, *band)}


def test_prototypes_are_the_means_and_missing_classes_stay_missing(world):
    tensors = load_file(world.out / "prototypes/prototypes.safetensors")
    assert not tensors["seen"][3]  # no wall anywhere
    assert tensors["mutual"][3].abs().sum() == 0
    both = tensors["source_seen"] & tensors["target_seen"]
    assert both.any()
    expected = (tensors["source"][both] + tensors["target"][both]) / 2
    assert torch.allclose(tensors["mutual"][both], expected)


def test_prototypes_of_another_model_are_refused(world):
    with pytest.raises(ValueError, match="belong to another model"):
        read_prototypes(world.out / "prototypes", num_classes=13, dim=7)


def test_adapt_with_everything_on(world, tmp_path):
    metrics = _adapt(world, tmp_path / "out", mpa_params(adversarial_weight=0.001))
    assert {"loss/source_ce", "loss/target_ce", "loss/mpa_source", "loss/mpa_target"} <= set(metrics)
    assert metrics["prototypes/moved"] > 0
    assert not _same_weights(tmp_path / "out/model.safetensors", world.checkpoint)


def test_target_crops_are_mixed_on_their_part_of_the_sphere(world, tmp_path):
    crop = AugmentParams(crop_height=32, crop_width=40, scale=(0.7, 1.5), yaw_roll=True)
    params = adapt_params(augment_target=crop, class_mix=1.0, erp_warp=1.0)
    metrics = _adapt(world, tmp_path / "out", params)
    assert metrics["loss/target_ce"] > 0 and 0 < metrics["teacher/kept_share"] <= 1


def test_source_free_reads_no_source(world, tmp_path):
    params = SourceFreeParams(**STEPS, augment_target=ROLLED)
    nothing = {"source_train": None, "prototypes": None}
    metrics = _adapt(world, tmp_path / "out", params, **nothing)
    assert metrics["loss/target_ce"] > 0 and metrics["teacher/kept_share"] > 0.2
    assert not _same_weights(tmp_path / "out/model.safetensors", world.checkpoint)
    with pytest.raises(ValueError, match="teacher_mix needs a labelled source; method source_free"):
        _adapt(world, tmp_path / "other", adapt_params(), **nothing)


def test_the_control_does_not_see_the_target(world, tmp_path):
    params = SSLParams(**STEPS, target_weight=0.0)
    other = prepared(tmp_path / "other", {"train": 4}, erp=True, labels=False, shade=-60)
    labels = tmp_path / "labels"
    pseudo_labels(
        checkpoint=world.checkpoint,
        target_train=other / "train",
        out=labels,
        params=LABELS,
        context=RunContext(),
    )
    _adapt(world, tmp_path / "one", params)
    _adapt(world, tmp_path / "two", params, target_train=other / "train", pseudo_labels=labels)
    assert _same_weights(tmp_path / "one/model.safetensors", tmp_path / "two/model.safetensors")


@pytest.mark.parametrize(
    ("params", "files"),
    [
        (adapt_params(), ("model.safetensors",)),
        (mpa_params(), ("model.safetensors", "prototypes.safetensors")),
    ],
    ids=["teacher_mix", "mpa"],
)
def test_adapt_is_deterministic_and_resumes(params, files, world, tmp_path, monkeypatch):
    from panoda.engine.step import Stepper

    _adapt(world, tmp_path / "whole", params)
    original = Stepper.__call__

    def dying(stepper, step, batch):
        if step == 3:
            raise KeyboardInterrupt
        return original(stepper, step, batch)

    context = RunContext(state_dir=tmp_path / "state", log_every=1, checkpoint_every=2)
    monkeypatch.setattr(Stepper, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        _adapt(world, tmp_path / "killed", params, context=context)
    monkeypatch.setattr(Stepper, "__call__", original)
    _adapt(world, tmp_path / "killed", params, context=context)
    for name in files:
        assert _same_weights(tmp_path / "whole" / name, tmp_path / "killed" / name)


def test_rounds_go_on_from_the_last_model(world, tmp_path):
    keywords = {
        "adapted": world.checkpoint,
        **world.train,
        "pseudo_labels": LABELS,
        "prototypes": PROTOTYPES,
        "adapt": adapt_params(),
        "seed": 0,
        "context": RunContext(),
    }
    assert rounds(**keywords, out=tmp_path / "one", rounds=1) == {}
    metrics = rounds(**keywords, out=tmp_path / "two", rounds=2)
    assert np.isfinite(metrics["round2/adapt/loss/total"])
    assert (tmp_path / "two/round2/adapt/model.safetensors").exists()


def test_a_checkpoint_of_another_label_space_is_refused(world, tmp_path):
    from panoda.models import create_model
    from panoda.models.core.checkpoint import make_card, save_model

    other = create_model("trans4pass_nano", num_classes=19)
    card = make_card(other, label_space="cs19", stage="pretrain", seed=0)
    save_model(tmp_path / "other.safetensors", other, card)
    with pytest.raises(ValueError, match="19.*13|13.*19"):
        _adapt(world, tmp_path / "out", adapt_params(), checkpoint=tmp_path / "other.safetensors")


def test_a_full_disk_at_the_end_of_pretrain_loses_nothing(world, tmp_path, monkeypatch):
    from panoda.stages import pretrain as module

    keywords = {
        "source_train": world.source / "train",
        "source_val": world.source / "val",
        "out": tmp_path / "out",
        "model": ModelParams(),
        "params": PRETRAIN.model_copy(update={"iterations": 2, "validate_every": 1}),
        "seed": 0,
        "context": RunContext(state_dir=tmp_path / "state", log_every=1, checkpoint_every=2),
    }

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_training_result", full)
        with pytest.raises(OSError, match="disk full while writing .*out"):
            pretrain(**keywords)
    assert not (tmp_path / "out").exists()
    assert np.isfinite(pretrain(**keywords)["miou/source_val"])
    kept = {p.name for p in (tmp_path / "state").iterdir()} - {"best.safetensors"}  # of step 1, if it is best
    assert kept == {"resume-00000001.pt", "resume-00000002.pt"}


def test_a_source_without_labels_is_refused(world, tmp_path):
    bare = prepared(tmp_path / "bare", {"train": 2}, erp=False, labels=False)
    with pytest.raises(ValueError, match="bare.*has no labels"):
        pretrain(
            source_train=bare / "train",
            source_val=world.source / "val",
            out=tmp_path / "out",
            model=ModelParams(),
            params=PRETRAIN,
            seed=0,
            context=RunContext(),
        )
    with pytest.raises(ValueError, match="bare.*has no labels"):
        _adapt(world, tmp_path / "out", adapt_params(), source_train=bare / "train")


def test_rounds_log_one_after_another(world, tmp_path):
    class Steps(MetricLogger):
        def __init__(self) -> None:
            self.seen: list[tuple[str, int]] = []

        def log_metrics(self, metrics, step) -> None:
            self.seen += [(key, step) for key in metrics if key in ("lr", "kept_share", "cosine_mean")]

    logger = Steps()
    rounds(
        adapted=world.checkpoint,
        **world.train,
        out=tmp_path / "out",
        rounds=3,
        pseudo_labels=LABELS,
        prototypes=PROTOTYPES,
        adapt=adapt_params(iterations=1),
        seed=0,
        context=RunContext(logger=logger),
    )
    assert len(logger.seen) == len(set(logger.seen)) == 6


def test_a_folder_and_a_model_are_enough(world, tmp_path):
    """Full panoramas of two sizes, 2:1, as a camera leaves them; the model was trained on pinhole images."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, height in enumerate((160, 192, 160)):
        shade = torch.linspace(0, 255, height, dtype=torch.float32)[:, None, None].expand(-1, 2 * height, 3)
        Image.fromarray(shade.to(torch.uint8).numpy()).save(photos / f"{number}.png")
    runner = CliRunner()
    asked = [
        "adapt",
        str(photos),
        "--checkpoint",
        str(world.checkpoint),
        "--out",
        str(tmp_path / "own/model"),
    ]
    result = runner.invoke(app, [*asked, "--steps", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    model, card = load_model(tmp_path / "own/model/model.safetensors")
    assert card.stage == "adapt" and card.params["prepared"]["projection"] == "erp"
    assert card.params["adapt"]["source_colours"] == 1 and card.colours == read_card(world.checkpoint).colours
    assert sorted(p.name for p in (tmp_path / "own").iterdir()) == ["model"]
    for out in (photos, photos / "inside", tmp_path, world.checkpoint.parent):
        refused = [*asked[:4], "--out", str(out)]
        with pytest.raises(ValueError, match="choose a"):
            runner.invoke(app, refused, catch_exceptions=False, standalone_mode=False)
    assert (photos / "0.png").is_file() and world.checkpoint.is_file()
    with pytest.raises(ValueError, match="no such folder"):
        runner.invoke(app, ["adapt", "nowhere", *asked[2:]], catch_exceptions=False, standalone_mode=False)
