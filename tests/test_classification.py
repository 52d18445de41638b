"""``panoda classify``: folders of classes, fine-tuning, the linear probe, published checkpoints, errors."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from panoda.classification import city_objects as objects
from panoda.classification import training
from panoda.classification.data import random_batches, read_split, read_train_and_val, seeded
from panoda.classification.evaluate import Accuracy, evaluate
from panoda.classification.files import load_classifier
from panoda.classification.model import (
    Probed,
    build_encoder,
    read_encoder,
    with_head,
)
from panoda.classification.params import EvaluateParams, FinetuneParams, ProbeParams
from panoda.classification.training import ClassifyTask, judge, training_transform
from panoda.cli.app import app
from panoda.config import TrackingParams
from panoda.labels import get_label_space
from panoda.models import create_model
from panoda.models.core.checkpoint import make_card, save_model
from panoda.models.encoders.factory import create_encoder
from panoda.models.weights.pretrained import WeightsCard, save_weights
from panoda.pipeline.classify import classify
from panoda.system.context import RunContext
from panoda.system.errors import DataError

COLOURS = ("blue", "green", "red")
CPU = RunContext()
SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
QUICK: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0.0, "batch_size": 4, "validate_epochs": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three colours, 16 pixels wide: 4 images of each for training, 2 for val."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for k, name in enumerate(COLOURS):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., 2 - k] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as MAE's pretraining writes it: encoder and decoder under ``model``."""
    torch.manual_seed(0)
    state = VisionTransformer(num_classes=0, global_pool="token", **SIZES).state_dict()
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192)}
    path = tmp_path_factory.mktemp("weights") / "mae_pretrain.pth"
    torch.save({"model": state}, path)
    return path


def finetune(data: Path, encoder: Path, **changes: Any) -> FinetuneParams:
    return FinetuneParams(data=str(data), encoder=str(encoder), **{**QUICK, **changes})


# --- data ----------------------------------------------------------------------------------------------


def test_classes_are_those_of_train(data: Path) -> None:
    train, val = read_train_and_val(data)
    assert train.classes == val.classes == COLOURS
    assert [label for _, label in val.items] == [0, 0, 1, 1, 2, 2]


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "1.png")
    return root


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/a", "train/b", "val/c"), r"val: has c, which are none of the 2 classes .*a, b"),
        (("train/a", "val/a"), r"train: one class alone \(a\)"),
        (("train/a", "train/b"), r"val: no such folder; expected folders of classes"),
        ((), r"train: no such folder"),
    ],
)
def test_folders_that_cannot_be_learnt_from(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_train_and_val(folders(tmp_path, *names))


def test_a_class_without_images(tmp_path: Path) -> None:
    folders(tmp_path, "train/a", "train/b")
    (tmp_path / "train/b/1.png").unlink()
    with pytest.raises(DataError, match=r"train/b: no images in it .*\.png"):
        read_split(tmp_path / "train")


def test_batches_depend_on_seed_and_step_alone(data: Path, pretrained: Path) -> None:
    train, _ = read_train_and_val(data)
    look = training_transform(finetune(data, pretrained), 16, (0.5,) * 3, (0.5,) * 3)
    whole = list(random_batches(train, look, batch_size=4, seed=1, steps=range(5), workers=0))
    random.seed(7)
    later = next(random_batches(train, look, batch_size=4, seed=1, steps=range(3, 5), workers=0))
    assert torch.equal(later["image"], whole[3]["image"]) and later["ids"] == whole[3]["ids"]
    epoch = [one for batch in whole[:3] for one in batch["ids"]]
    assert sorted(epoch) == sorted(str(path) for path, _ in train.items)
    assert not torch.equal(whole[0]["image"], whole[3]["image"])


def test_the_strongest_posterisation_works(data: Path, pretrained: Path) -> None:
    look = training_transform(finetune(data, pretrained), 16, (0.5,) * 3, (0.5,) * 3)
    (augment,) = (part for part in look.transforms if hasattr(part, "ops"))
    (operation,) = (one for one in augment.ops if one.name.startswith("Posterize"))
    operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
    assert np.asarray(operation(Image.new("RGB", (4, 4), (200, 0, 90)))).max() == 128


def test_seeded_puts_the_generators_back() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with seeded(3):
        first = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with seeded(3):
        assert draws() == first
    assert draws() == expected


def test_crops_of_the_city_are_balanced_and_show_their_class_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = get_label_space("cs19")
    band = 24
    row = np.repeat([space.index(name) for name in objects.CLASSES], band).astype(np.uint8)
    label = np.tile(row, (40, 1))
    for folder in ("images", "labels"):
        (tmp_path / "city" / folder).mkdir(parents=True)
    for number in range(3):
        Image.fromarray(label).save(tmp_path / f"city/labels/{number:05d}.png")
        Image.fromarray(np.repeat(label[..., None], 3, axis=2)).save(
            tmp_path / f"city/images/{number:05d}.png"
        )
    monkeypatch.setattr(objects, "PARAMS", objects.PARAMS | {"crop": 16, "per_image": 2, "per_class": 5})
    objects._write_split(tmp_path / "city", tmp_path / "train")
    found = read_split(tmp_path / "train")
    assert len(found.classes) >= 8
    assert [sum(label == k for _, label in found.items) for k in range(len(found.classes))] == [5] * 10
    for path, k in found.items:
        middle = np.asarray(Image.open(path))[8, 8, 0]
        assert space.names[middle] == found.classes[k].replace("_", " ")


def test_the_city_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(objects, "write_city", lambda *a, **k: written.append(a))
    monkeypatch.setattr(objects, "_write_split", lambda city, out: out.mkdir())
    folder = tmp_path / "objects"
    for _ in range(2):
        assert objects.city_objects(folder) == folder
    monkeypatch.setattr(objects, "PARAMS", objects.PARAMS | {"crop": 32})
    objects.city_objects(folder)
    assert len(written) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["objects"]


# --- models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_an_encoder_of_mae_gets_the_published_head(pretrained: Path, pool: str) -> None:
    encoder = read_encoder(str(pretrained))
    net, _ = build_encoder(encoder, img_size=0, global_pool=pool, drop_path=0.0, random=False)
    assert isinstance(net.fc_norm, torch.nn.LayerNorm) == (pool == "avg")
    assert isinstance(net.norm, torch.nn.LayerNorm) == (pool == "token")
    given = torch.load(pretrained, weights_only=True)["model"]
    own = net.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in own if not key.startswith("fc_norm"))
    head = with_head(net, 5).head
    assert head.weight.abs().max() < 1e-4 and head.weight.std() > 1e-5 and not head.bias.any()


def test_positions_of_another_size_are_resized(pretrained: Path) -> None:
    encoder = read_encoder(str(pretrained))
    net, _ = build_encoder(encoder, img_size=32, global_pool="avg", drop_path=0.0, random=False)
    assert net.pos_embed.shape == (1, 17, 192) and net(torch.rand(1, 3, 32, 32)).shape == (1, 192)
    with pytest.raises(ValueError, match=r"img_size is 20, but the patches .* are 8 pixels.* such as 16"):
        build_encoder(encoder, img_size=20, global_pool="avg", drop_path=0.0, random=True)


def test_what_stage_ssl_pretrain_writes_is_an_encoder(tmp_path: Path) -> None:
    encoder: Any = create_encoder("vit:vit_tiny_patch16_224")
    tensors = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    card = WeightsCard(encoder="vit:vit_tiny_patch16_224", source="stage ssl_pretrain", layout="mae")
    save_weights(tmp_path / "encoder.safetensors", tensors, card)
    found = read_encoder(str(tmp_path / "encoder.safetensors"))
    net, _ = build_encoder(found, img_size=32, global_pool="token", drop_path=0.0, random=False)
    assert torch.equal(net.blocks[3].mlp.fc1.weight, encoder.net.blocks[3].mlp.fc1.weight)
    images = torch.rand(1, 3, 32, 32)
    last = encoder.eval()(images)[-1]  # before the norm, which is new
    torch.testing.assert_close(
        net.norm(last.flatten(2).transpose(1, 2)), net.eval().forward_features(images)[:, 1:]
    )
    save_weights(tmp_path / "mit.safetensors", {}, card.model_copy(update={"encoder": "mit_b0"}))
    with pytest.raises(
        ValueError, match=r"mit.safetensors: weights of mit_b0; expected those of a plain ViT"
    ):
        read_encoder(str(tmp_path / "mit.safetensors"))


def test_random_takes_the_sizes_alone(pretrained: Path) -> None:
    encoder = read_encoder(str(pretrained))
    net, _ = build_encoder(encoder, img_size=0, global_pool="avg", drop_path=0.0, random=True)
    assert encoder.tensors is not None
    assert not torch.equal(net.blocks[0].attn.qkv.weight, encoder.tensors["blocks.0.attn.qkv.weight"])


def test_rates_fall_from_the_head_down(pretrained: Path, data: Path) -> None:
    encoder = read_encoder(str(pretrained))
    net, _ = build_encoder(encoder, img_size=0, global_pool="avg", drop_path=0.0, random=False)
    model = with_head(net, 3)
    optimizer = training._optimizer(model, finetune(data, pretrained, base_lr=0.01, batch_size=64), 192)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    rates = {name: found[id(p)] for name, p in model.named_parameters()}
    peak = 0.01 * 64 / 256
    for name, power, decay in (
        ("head.weight", 0, 0.05),
        ("fc_norm.weight", 0, 0.0),
        ("blocks.1.mlp.fc1.weight", 1, 0.05),
        ("blocks.0.attn.qkv.bias", 2, 0.0),
        ("patch_embed.proj.weight", 3, 0.05),
        ("cls_token", 3, 0.0),
        ("pos_embed", 3, 0.0),
    ):
        assert rates[name] == pytest.approx((peak * 0.65**power, decay)), name


def test_warm_up_then_half_a_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = training.half_cosine(optimizer, steps=6, warmup=2, floor=0.1)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    cosine = [0.2 + 1.8 * 0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(5)]
    assert rates == pytest.approx([0.0, 1.0, *cosine])


def test_accuracy_counts_ranks() -> None:
    found = Accuracy(tuple("abcdef"), torch.tensor([0, 1, 1, 5]), torch.tensor([0, 4, 0, 5]))
    assert found.metrics() == {"top1": 0.5, "top5": 0.75}


# --- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet10t", "pretrained"])
def test_the_probe_leaves_the_encoder_alone(data: Path, pretrained: Path, name: str) -> None:
    encoder = read_encoder(str(pretrained) if name == "pretrained" else name)
    net, _ = build_encoder(
        encoder, img_size=0, global_pool="token", drop_path=0.5, random=encoder.tensors is None
    )
    params = ProbeParams(data=str(data), encoder=encoder.source, **QUICK)
    train, _ = read_train_and_val(data)
    model = Probed(net, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    task = ClassifyTask(model, train, params, size=16, mean=(0.5,) * 3, std=(0.5,) * 3, context=CPU)
    optimizer = training._optimizer(model, params, 192)
    for step, batch in zip(range(3), task.batches(0), strict=False):
        task.losses(step, batch)["loss/total"].backward()
        optimizer.step()
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {
        *("head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked"),
        *("head.1.weight", "head.1.bias"),
    }
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert model.head[0].eps == 1e-6 and not model.head[0].affine
    assert {len(group["params"]) for group in optimizer.param_groups} == {1}
    assert all(not group["weight_decay"] for group in optimizer.param_groups)


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.0, "cutmix": 0.0}], ids=["mixed", "plain"])
def test_finetuning_learns_colours_and_its_file_is_evaluated(
    data: Path, pretrained: Path, tmp_path: Path, mixing: dict[str, float]
) -> None:
    plain = {"rand_augment": None, "random_erasing": 0.0, "drop_path": 0.0, "crop_scale": (0.5, 1.0)}
    params = finetune(
        data, pretrained, epochs=8, base_lr=0.1, layer_decay=1.0, validate_epochs=4, **plain, **mixing
    )
    metrics = judge(data, tmp_path / "out", params, context=CPU)
    assert metrics["top5"] == 1.0 and metrics["top1"] > 0.6
    names = ["classes.csv", "history.csv", "metrics.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    again = EvaluateParams(data=str(data), checkpoint=str(tmp_path / "out/model.safetensors"))
    assert evaluate(data, tmp_path / "again", again, context=CPU) == metrics


def test_a_probe_is_evaluated_too(
    data: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = ProbeParams(data=str(data), encoder=str(pretrained), **QUICK)
    metrics = judge(data, tmp_path / "out", params, context=CPU)
    assert "the probe's weights can hardly move: 6 steps" in caplog.text and "about 410" in caplog.text
    again = EvaluateParams(data=str(data), checkpoint=str(tmp_path / "out/model.safetensors"))
    assert evaluate(data, tmp_path / "again", again, context=CPU) == metrics


def test_a_killed_run_goes_on_to_the_same_bytes(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = finetune(data, pretrained)
    judge(data, tmp_path / "whole", params, context=CPU)
    context = RunContext(state_dir=tmp_path / "state", checkpoint_every=2)
    losses = ClassifyTask.losses

    def killed(self: ClassifyTask, step: int, batch: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return losses(self, step, batch)

    monkeypatch.setattr(ClassifyTask, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        judge(data, tmp_path / "resumed", params, context=context)
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setattr(ClassifyTask, "losses", losses)
    judge(data, tmp_path / "resumed", params, context=context)
    for name in ("model.safetensors", "metrics.json", "classes.csv"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# --- published checkpoints, and what is none -------------------------------------------------------------


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_a_published_checkpoint_says_its_pooling_and_sizes(tmp_path: Path, pool: str) -> None:
    torch.manual_seed(0)
    net = VisionTransformer(num_classes=3, global_pool=pool, **SIZES)
    path = tmp_path / "mae_finetuned_vit_tiny.pth"
    torch.save({"model": net.state_dict()}, path)
    model, card = load_classifier(path)
    assert card.arguments == {**SIZES, "mlp_ratio": 4.0, "global_pool": pool} and card.num_classes == 3
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(images), net.eval()(images))


def test_a_checkpoint_of_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "finetuned.pth"
    torch.save({"model": VisionTransformer(num_classes=7, global_pool="avg", **SIZES).state_dict()}, path)
    params = EvaluateParams(data=str(data), checkpoint=str(path))
    with pytest.raises(DataError, match=r"finetuned.pth: a classifier of 7 classes, but .*val has 3 folders"):
        evaluate(data, tmp_path / "out", params, context=CPU)
    assert not (tmp_path / "out").exists()


def test_a_file_of_pretraining_is_no_classifier(data: Path, pretrained: Path, tmp_path: Path) -> None:
    params = EvaluateParams(data=str(data), checkpoint=str(pretrained))
    with pytest.raises(ValueError, match=r"mae_pretrain.pth: no classifier in it .*panoda classify finetune"):
        evaluate(data, tmp_path / "out", params, context=CPU)


def segmentation(folder: Path, kind: str) -> Path:
    if kind == "own":
        model = create_model("vit:vit_tiny_patch16_224", num_classes=19, decoder="setr_naive", width=8)
        path = folder / "model.safetensors"
        save_model(path, model, make_card(model, label_space="cs19", stage="pretrain", seed=0))
    else:
        path = folder / "segmentation.pth"
        torch.save(
            {"state_dict": {"backbone.cls_token": torch.zeros(1), "decode_head.w": torch.zeros(1)}}, path
        )
    return path


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_a_segmentation_model_is_no_pretraining(data: Path, tmp_path: Path, kind: str) -> None:
    path = segmentation(tmp_path, kind)
    with pytest.raises(
        ValueError, match=f"{path.name}: a segmentation model.*expected the weights of an encoder"
    ):
        judge(data, tmp_path / "out", finetune(data, path), context=CPU)
    with pytest.raises(ValueError, match=f"{path.name}: a segmentation model.*expected a classifier"):
        load_classifier(path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(2)}, "not in the layout of MAE's weights: no cls_token, pos_embed"),
        ({"embed_dim": 100}, "100 channels, whose number of attention heads is not known.*--heads"),
    ],
)
def test_weights_that_cannot_be_understood(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    path = tmp_path / "weights.pth"
    if "embed_dim" in state:
        state = VisionTransformer(num_classes=0, **{**SIZES, **state, "num_heads": 4}).state_dict()
    torch.save(state, path)
    with pytest.raises(ValueError, match=message):
        read_encoder(str(path))


def test_names_of_timm(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timm .* has no model 'vit_tiniest'"):
        judge(data, tmp_path / "out", finetune(data, Path("vit_tiniest")), context=CPU)
    with pytest.raises(ValueError, match=r"missing.pth: no such weights file"):
        read_encoder(str(tmp_path / "missing.pth"))
    net, arguments = build_encoder(
        read_encoder("resnet10t"), img_size=0, global_pool="token", drop_path=0.0, random=True
    )
    assert arguments["global_pool"] == "avg" and net.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 512)


# --- runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, without MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("panoda.pipeline.apart.find_spec", lambda name: None)
    return tmp_path


def test_the_command(data: Path, pretrained: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [
        f"--set={name}={value}" for name, value in QUICK.items() if name not in ("epochs", "batch_size")
    ]
    run = ["--epochs=1", "--batch-size=4", *changes, "--device=cpu"]
    result = CliRunner().invoke(
        app, ["classify", "probe", str(data), f"--encoder={pretrained}", "--out=probed", *run]
    )
    assert result.exit_code == 0, result.exception
    assert "probed: top-1 " in result.output and "top-5 100.0 % on val" in result.output
    record = json.loads((project / "probed/run.json").read_text())
    assert record["action"] == "classify-probe" and record["params"]["batch_size"] == 4
    result = CliRunner().invoke(
        app, ["classify", "evaluate", str(data), "--checkpoint=probed/model.safetensors"]
    )
    assert result.exit_code == 0, result.exception
    (out,) = (project / "runs").glob("classify-evaluate-*")
    assert (out / "metrics.json").read_bytes() == (project / "probed/metrics.json").read_bytes()
    assert not list((project / ".panoda/state").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [("batch_size=3", "batch_size"), ("mixup", "expected NAME=VALUE"), ("mixupp=1", "mixupp.*mixup")],
)
def test_wrong_parameters_start_nothing(data: Path, project: Path, change: str, message: str) -> None:
    result = CliRunner().invoke(app, ["classify", "finetune", str(data), f"--set={change}"])
    assert isinstance(result.exception, ValueError) and re.search(message, str(result.exception))
    assert not list(project.iterdir())


def test_a_wrong_folder_leaves_nothing(pretrained: Path, project: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        classify(finetune(project / "nothing", pretrained), progress=False)
    assert not (project / "runs").exists()


def test_parameters_are_listed_and_documented() -> None:
    result = CliRunner().invoke(app, ["classify", "finetune", "city", "--show"])
    assert result.exit_code == 0 and "layer_decay  (float or null, default None)" in result.output
    for kind in (FinetuneParams, ProbeParams, EvaluateParams):
        assert all(info.description for info in kind.model_fields.values())


def test_the_flow_takes_the_same_parameters() -> None:
    pytest.importorskip("prefect")
    from flows.classify import classify as flow

    for deployment in yaml.safe_load((Path(__file__).parents[1] / "prefect.yaml").read_text())["deployments"]:
        if deployment["entrypoint"] == "flows/classify.py:classify":
            checked = flow.validate_parameters(deployment["parameters"])
            assert checked["params"] == FinetuneParams(
                data="city", encoder="vit_tiny_patch16_224", random=True
            )
            return
    raise AssertionError("classify is no deployment")


@pytest.mark.pipeline
def test_a_run_is_logged(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = TrackingParams(experiment="judged", uri=uri)
    _, metrics = classify(finetune(data, pretrained, epochs=1), tracking=tracking, progress=False)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("judged").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["top5"] == metrics["top5"]
    assert run.data.params["layer_decay"] == "null"


def test_of_equal_values_the_first_class_counts(
    data: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from panoda.classification import evaluate as module

    split = read_split(data / "val")
    batch = {"image": torch.zeros(3, 3, 8, 8), "label": torch.tensor([0, 1, 1])}
    monkeypatch.setattr(module, "ordered_batches", lambda *args, **kwargs: [batch])
    equal = module.accuracy(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2, bias=False)),
        split,
        None,
        batch_size=3,
        context=RunContext(),
    )  # type: ignore[arg-type]
    assert equal.metrics()["top1"] == pytest.approx(1 / 3)
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    torch.nn.init.constant_(broken[1].bias, float("nan"))
    with pytest.raises(ValueError, match="values that are not finite"):
        module.accuracy(broken, split, None, batch_size=3, context=RunContext())  # type: ignore[arg-type]


def test_a_result_folder_that_holds_data_is_refused(
    data: Path, pretrained: Path, project: Path, tmp_path: Path
) -> None:
    params = finetune(data, pretrained)
    for out in (data, data / "train", data.parent, pretrained.parent):
        with pytest.raises(ValueError, match=f"--out {out}: "):
            classify(params, out=out)
    assert (data / "train").is_dir() and pretrained.is_file()
