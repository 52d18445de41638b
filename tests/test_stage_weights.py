"""Stage weights and its way into pretraining: what is loaded, what is new, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_data import prepared

from panoda.config import ModelParams, OptimParams
from panoda.labels import LabelSpace
from panoda.methods.supervised import SupervisedParams
from panoda.models import CheckpointError, Segmenter, create_model
from panoda.models.core.checkpoint import load_model, make_card, read_card, save_model
from panoda.models.weights.fitting import class_layers, fit
from panoda.models.weights.pretrained import WeightsCard, read_weights, save_weights
from panoda.stages.pretrain import _load_weights, pretrain
from panoda.stages.weights import build_model, read_stage_weights, weights
from panoda.system.context import RunContext

TINY = "vit:vit_tiny_patch16_224.augreg_in21k"


def encoder_of(model: Segmenter) -> dict[str, torch.Tensor]:
    return {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}


def model_of(encoder: str, classes: int = 5, **options: object) -> Segmenter:
    torch.manual_seed(7)
    return create_model(encoder, num_classes=classes, **options)  # type: ignore[arg-type]


def card_of(encoder: str, **changes: object) -> WeightsCard:
    return WeightsCard(encoder=encoder, source="a test", layout="test", **changes)  # type: ignore[arg-type]


def run(folder: Path, **section: object) -> tuple[dict[str, float], Path]:
    out = folder.parent / "out"
    params = ModelParams(**section)  # type: ignore[arg-type]
    return weights(weights=folder, out=out, model=params, context=RunContext()), out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_without_weights_there_is_an_empty_report(folder: Path) -> None:
    metrics, out = run(folder)
    assert metrics == {} and sorted(p.name for p in out.iterdir()) == ["metrics.json", "report.json"]
    assert json.loads((out / "report.json").read_text()) == {"weights": None}
    assert read_stage_weights(out) is None
    with pytest.raises(CheckpointError, match="not a result of stage weights"):
        read_stage_weights(folder)


@pytest.mark.parametrize("name", ["mine", "mine.safetensors", "weights/mine.safetensors"])
def test_an_encoder_is_taken_by_its_name(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    source = model_of("trans4pass_nano")
    save_weights(folder / "mine.safetensors", encoder_of(source), card_of("trans4pass_nano"))
    metrics, out = run(Path("weights"), weights=name)
    found, card = read_weights(Path(out) / "encoder.safetensors")
    assert card.encoder == "trans4pass_nano" and card.decoder is None
    assert set(found) == set(encoder_of(source))
    assert all(torch.equal(found[key], value) for key, value in encoder_of(source).items())
    assert metrics["tensors_loaded"] == len(found) and metrics["tensors_dropped"] == 0
    report = json.loads((Path(out) / "report.json").read_text())
    assert report["notes"] == ["the decoder is new"]
    assert all(key.startswith("decoder.") for key in report["new"]) and report["new"]
    first = (Path(out) / "encoder.safetensors").read_bytes()
    run(Path("weights"), weights=name)
    assert (Path(out) / "encoder.safetensors").read_bytes() == first


def test_mit_weights_leave_the_deformable_embedding_undeformed(folder: Path) -> None:
    save_weights(folder / "mit.safetensors", encoder_of(model_of("mit_b1")), card_of("mit_b1"))
    metrics, out = run(folder, weights="mit", encoder="trans4pass_t")
    report = json.loads((out / "report.json").read_text())
    assert metrics["tensors_loaded"] == len(encoder_of(model_of("mit_b1")))
    new = [key for key in report["new"] if key.startswith("encoder.")]
    assert new == [
        f"encoder.patch_embed.{part}_conv.{kind}"
        for part in ("offset", "modulator")
        for kind in ("weight", "bias")
    ]
    assert any("it starts with none" in note for note in report["notes"])
    net = model_of("trans4pass_t")
    params = ModelParams(encoder="trans4pass_t", weights="mit")
    _load_weights(net, out, params, "cs19")
    assert not net.encoder.patch_embed.offset_conv.weight.any()
    assert torch.equal(
        net.encoder.patch_embed.proj.weight, model_of("mit_b1").encoder.patch_embed.proj.weight
    )
    # Not the other way: what was trained deformed is another network without.
    save_weights(folder / "t4p.safetensors", encoder_of(model_of("trans4pass_t")), card_of("trans4pass_t"))
    with pytest.raises(CheckpointError, match="set model.encoder to trans4pass_t.*\n.*4 unexpected"):
        run(folder, weights="t4p", encoder="mit_b1")


def test_wrong_encoders_are_explained(folder: Path) -> None:
    save_weights(folder / "b0.safetensors", encoder_of(model_of("mit_b0")), card_of("mit_b0"))
    with pytest.raises(CheckpointError) as caught:
        run(folder, weights="b0", encoder="mit_b1")
    text = str(caught.value)
    assert (
        "The model's encoder is mit_b1; set model.encoder to mit_b0." in text and "of another shape" in text
    )
    assert not (folder.parent / "out").exists()
    # Same shapes, other inputs.
    save_weights(folder / "tiny.safetensors", encoder_of(model_of(TINY)), card_of(TINY))
    assert run(folder, weights="tiny", encoder=TINY, decoder="fcn")[0]["tensors_dropped"] == 0
    other = "vit:vit_tiny_patch16_224"
    assert run(folder, weights="tiny", encoder=other, decoder="fcn")[0]["tensors_dropped"] == 0
    model = model_of(TINY)
    imagenet = card_of("vit:deit_tiny_patch16_224.fb_in1k")
    save_weights(folder / "deit.safetensors", encoder_of(model), imagenet)
    with pytest.raises(CheckpointError, match=r"they want images normalised with mean \(0.485"):
        run(folder, weights="deit", encoder=TINY, decoder="fcn")


def test_blocks_behind_the_last_one_taken_are_left_out(folder: Path) -> None:
    save_weights(folder / "tiny.safetensors", encoder_of(model_of(TINY)), card_of(TINY))
    metrics, out = run(folder, weights="tiny", encoder=TINY, decoder="setr_naive", blocks=(1, 3, 5, 7))
    dropped = json.loads((out / "report.json").read_text())["dropped"]
    assert metrics["tensors_dropped"] == len(dropped) == 4 * 12
    assert all(key.startswith(tuple(f"encoder.net.blocks.{i}." for i in range(8, 12))) for key in dropped)


def test_a_whole_model_goes_in_with_its_decoder_but_for_other_classes(folder: Path) -> None:
    source = model_of(TINY, 13, decoder="setr_pup", width=32)
    card = make_card(source, label_space="cs13", stage="adapt", seed=3)
    save_model(folder / "mine.safetensors", source, card)
    params = ModelParams(weights="mine", encoder=TINY, decoder="setr_pup", width=32)
    metrics, out = run(folder, **params.model_dump())
    assert metrics["tensors_new"] == 0 and (out / "model.safetensors").is_file()
    same = build_model(params, num_classes=13)
    start = _load_weights(same, out, params, "cs13")
    assert (
        start is not None and start["new"] == [] and start["card"]["source"].startswith("stage adapt, seed 3")
    )
    x = torch.rand(1, 3, 64, 96)
    assert torch.equal(source.eval()(x), same.eval()(x))
    # 19 classes, or 13 others: only what predicts them is new.
    for classes, space, why in (
        (19, "cs19", "has 13 classes, the model 19"),
        (13, "indoor13", "label space is"),
    ):
        other = build_model(params, num_classes=classes)
        before = {key: value.clone() for key, value in other.state_dict().items()}
        start = _load_weights(other, out, params, space)
        assert start is not None and any(why in note for note in start["notes"])
        assert set(start["new"]) == class_layers(other)
        for key, value in other.state_dict().items():
            expected = before if key in start["new"] else source.state_dict()
            assert torch.equal(value, expected[key]), key
    assert {key.rsplit(".", 1)[0] for key in class_layers(same)} >= {"decoder.predict"}


def test_another_decoder_or_other_auxiliary_heads_are_left_out(folder: Path) -> None:
    source = model_of(TINY, 13, decoder="setr_pup", width=32)
    save_model(folder / "m.safetensors", source, make_card(source, label_space="cs13", stage="adapt", seed=0))
    metrics, out = run(folder, weights="m", encoder=TINY, decoder="upernet", width=32)
    report = json.loads((out / "report.json").read_text())
    assert metrics["tensors_loaded"] == len(source.encoder.state_dict())
    assert "decoder setr_pup is left out, the model's upernet is new" in report["notes"][0]
    _, out = run(folder, weights="m", encoder=TINY, decoder="setr_pup", width=32, auxiliary_weights=())
    report = json.loads((out / "report.json").read_text())
    assert report["new"] == [] and all(key.startswith("decoder.heads.") for key in report["dropped"])
    assert report["dropped"]
    with pytest.raises(CheckpointError, match="decoder is setr_pup, width 32.*--encoder-only"):
        run(folder, weights="m", encoder=TINY, decoder="setr_pup", width=48)


@pytest.mark.parametrize("name", ["/elsewhere/mit_b1.pth", "../mit_b1.safetensors", "mit_b1.pth"])
def test_files_elsewhere_are_to_be_imported(folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"panoda weights import {name}"):
        run(folder, weights=name)


def test_files_that_are_missing_or_foreign_or_truncated_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="none.safetensors: no such weights; `panoda weights list`"):
        run(folder, weights="none")
    save_file({"a": torch.ones(2)}, folder / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not in this project's layout.*panoda weights import"):
        run(folder, weights="foreign")
    save_weights(folder / "good.safetensors", encoder_of(model_of("mit_b0")), card_of("mit_b0"))
    data = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cut.safetensors: truncated"):
        run(folder, weights="cut")
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.pt2", "w.npz", "model.safetensors.index.json", "a.weights"]
)
def test_files_of_other_kinds_are_named_as_such(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(CheckpointError, match=f"model.weights is '{name}'.*panoda weights import"):
        run(folder, weights=name)


def test_pages_and_values_that_are_not_finite_are_refused(folder: Path) -> None:
    (folder / "page.safetensors").write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match="page.safetensors: a web page, not weights"):
        run(folder, weights="page")
    state = {key: value.clone() for key, value in encoder_of(model_of("mit_b0")).items()}
    state["encoder.stages.0.norm.bias"][:2] = torch.inf
    save_weights(folder / "b0.safetensors", state, card_of("mit_b0"))
    with pytest.raises(
        CheckpointError, match=r"b0.safetensors: 1 of .* encoder.stages.0.norm.bias \(2 of 32\)"
    ):
        run(folder, weights="b0", encoder="mit_b0")
    assert not (folder.parent / "out").exists()


def test_timm_takes_the_file_that_lies_there_and_says_where_there_is_none(folder: Path) -> None:
    save_weights(
        folder / "vit_tiny_patch16_224.augreg_in21k.safetensors", encoder_of(model_of(TINY)), card_of(TINY)
    )
    metrics, _ = run(folder, weights="timm", encoder=TINY, decoder="fcn")
    assert metrics["tensors_loaded"] == len(encoder_of(model_of(TINY)))
    with pytest.raises(CheckpointError, match="mit_b1: timm has no weights for it; `panoda weights list`"):
        run(folder, weights="timm", encoder="mit_b1")


def test_pretraining_starts_from_the_stage_and_its_checkpoint_says_so(folder: Path, tmp_path: Path) -> None:
    source = prepared(tmp_path / "source", {"train": 2, "val": 1}, erp=False)
    model = model_of("trans4pass_nano")
    save_weights(folder / "mine.safetensors", encoder_of(model), card_of("trans4pass_nano"))
    _, out = run(folder, weights="mine")
    frozen = OptimParams(name="sgd", lr=1e-12, momentum=0.0, weight_decay=0.0)
    keywords = {
        "source_train": source / "train",
        "source_val": source / "val",
        "out": tmp_path / "pretrain",
        "params": SupervisedParams(iterations=1, batch_size=1, optim=frozen),
        "seed": 0,
        "context": RunContext(),
    }
    pretrain(**keywords, model=ModelParams(weights="mine"), weights=out)
    trained, card = load_model(tmp_path / "pretrain" / "model.safetensors")
    found = trained.encoder.state_dict()
    for key, value in model.encoder.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=0)
    assert card.params["weights"]["card"]["source"] == "a test"
    assert read_card(tmp_path / "pretrain" / "model.safetensors").params["weights"]["notes"]
    for model_params, given in ((ModelParams(), out), (ModelParams(weights="mine"), None)):
        with pytest.raises(ValueError, match="run stage weights with the same parameters first"):
            pretrain(**keywords, model=model_params, weights=given)


def test_the_same_label_space_file_with_other_names_makes_new_predicting_layers(tmp_path):
    spaces = [LabelSpace("mine.yaml", names, ((1, 1, 1), (2, 2, 2))) for names in (("a", "b"), ("b", "a"))]
    model = create_model("trans4pass_nano", num_classes=2)
    file = tmp_path / "m.safetensors"
    save_model(file, model, make_card(model, label_space=spaces[0], stage="adapt", seed=0))
    tensors, card = read_weights(file)
    notes = [
        " ".join(fit(model, tensors, card, label_space=space.name, class_names=space.names).notes)
        for space in spaces
    ]
    assert not notes[0]
    assert "layers that predict classes are new: the file's classes of mine.yaml have other names" in notes[1]
