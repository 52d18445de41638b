"""`panoda weights`: every layout, made from our own random models by inverse renaming, and every refusal."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import command_line
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_models_weights import released
from torch import Tensor

from panoda.models import Segmenter, create_model
from panoda.models.catalogue import VITS
from panoda.models.checkpoint import make_card, save_model
from panoda.models.encoders import create_encoder
from panoda.models.importing import import_state
from panoda.models.pretrained import read_weights

ROOT = Path(__file__).resolve().parents[1]
TINY = "vit:vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "220")
    return tmp_path


def panoda(*arguments: str) -> tuple[int, str]:
    """Exit status and output of `panoda weights`."""
    return command_line.panoda("weights", *arguments)


def done(*arguments: str) -> str:
    status, text = panoda(*arguments)
    assert status == 0, text
    return text


def refused(*arguments: str) -> str:
    status, text = panoda(*arguments)
    assert status == 1, text
    assert not list(Path("data/weights").glob("*")), "a refused file must leave nothing"
    return text


def model_of(name: str, classes: int = 13, **options: Any) -> Segmenter:
    torch.manual_seed(5)
    return create_model(name, num_classes=classes, **options)


def equal(found: dict[str, Tensor], model: Segmenter, prefix: str = "") -> bool:
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
    return found.keys() == own.keys() and all(torch.equal(found[key], own[key]) for key in own)


# --- MiT and Trans4PASS ----------------------------------------------------------------------------------


def mit(model: Segmenter) -> dict[str, Tensor]:
    found = {k.removeprefix("encoder."): v for k, v in released(model).items() if k.startswith("encoder.")}
    return {**found, "head.weight": torch.ones(1000, 256), "head.bias": torch.ones(1000)}


def test_mit(project: Path) -> None:
    model = model_of("mit_b0")
    torch.save(mit(model), "mit_b0.pth")
    text = done("import", "mit_b0.pth")
    assert "mit_b0 (layout mit)" in text and "dropped: 2: head.weight, head.bias" in text
    assert "the decoder" in text and "model.weights mit_b0.safetensors" in text
    found, card = read_weights(Path("data/weights/mit_b0.safetensors"))
    assert equal(found, model, "encoder.") and card.decoder is None and card.encoder == "mit_b0"
    assert card.source.startswith("mit_b0.pth, SHA-256 ")
    # Once more, and under another name: the same bytes.
    first = Path("data/weights/mit_b0.safetensors").read_bytes()
    done("import", "mit_b0.pth")
    done("import", "mit_b0.pth", "--name", "copy")
    assert first == Path("data/weights/copy.safetensors").read_bytes()
    torch.save(mit(model_of("mit_b0", width=8)) | {"norm1.bias": torch.ones(32)}, "mit_b0.pth")
    status, text = panoda("import", "mit_b0.pth")
    assert status == 1 and "other weights have that name" in text
    assert first == Path("data/weights/mit_b0.safetensors").read_bytes()
    done("import", "mit_b0.pth", "--force")


def test_mit_may_be_meant_for_the_deformable_encoder_of_its_size(project: Path) -> None:
    torch.save(mit(model_of("mit_b1")), "mit_b1.pth")
    assert "weights of mit_b1, not for trans4pass_s" in refused(
        "import", "mit_b1.pth", "--encoder", "trans4pass_s"
    )
    assert "mit_b1 (layout mit)" in done("import", "mit_b1.pth", "--encoder", "trans4pass_t")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("supervised", [False, True])
def test_released_checkpoints(project: Path, supervised: bool, nested: bool) -> None:
    model = model_of("trans4pass_nano", 19)
    state = released(model)
    if supervised:
        names = (("encoder.", "backbone."), ("dede_head.", "decode_head."))
        state = {next((b + k[len(a) :] for a, b in names if k.startswith(a))): v for k, v in state.items()}
    state = {f"module.{key}": value for key, value in state.items()} if nested else state
    torch.save({"state_dict": state, "epoch": 3} if nested else state, "best.pth")
    text = done("import", "best.pth", "--decoder", "dmlp", "--num-classes", "19", "--label-space", "cs19")
    assert "trans4pass_nano with dmlp, 19 classes (layout trans4pass)" in text
    found, card = read_weights(Path("data/weights/best.safetensors"))
    assert equal(found, model)
    assert (card.width, card.num_classes, card.label_space) == (64, 19, "cs19")
    done("import", "best.pth", "--encoder-only", "--name", "encoder")
    found, card = read_weights(Path("data/weights/encoder.safetensors"))
    assert equal(found, model, "encoder.") and card.decoder is None and card.num_classes is None
    assert len(card.dropped) == len(model.decoder.state_dict())


def test_a_released_checkpoint_must_be_what_the_user_says(project: Path) -> None:
    torch.save(released(model_of("trans4pass_nano", 19)), "best.pth")
    for option, value, message in (
        ("--num-classes", "13", "num_classes is 19 in the file, not 13"),
        ("--decoder", "dmlpv2", "decoder is dmlp in the file, not dmlpv2"),
        ("--encoder", "trans4pass_t", "weights of trans4pass_nano, not for trans4pass_t"),
        ("--label-space", "cs13", "num_classes is 19 in the file, not 13"),
    ):
        assert message in refused("import", "best.pth", option, value)
    state = released(model_of("trans4pass_nano", 19))
    del state["dede_head.head2.proj.weight"]
    state["encoder.extra"] = torch.ones(1)
    torch.save(state, "best.pth")
    text = refused("import", "best.pth")
    assert "1 unexpected: extra" in text
    del state["encoder.extra"]
    torch.save(state, "best.pth")
    assert "1 missing: decoder.blocks.1.out.weight" in refused("import", "best.pth")
    other = {key.replace("dede_head.", "decode_head.linear_"): value for key, value in state.items()}
    torch.save(other, "best.pth")
    assert "no decoder of Trans4PASS(+)" in refused("import", "best.pth")
    assert "trans4pass_nano (layout trans4pass)" in done("import", "best.pth", "--encoder-only")


def test_files_of_the_original_mae_hold_a_command_line(project: Path) -> None:
    model = model_of(TINY, decoder="fcn")
    state = {
        k.removeprefix("encoder.net."): v for k, v in model.state_dict().items() if k.startswith("encoder")
    }
    state |= {"fc_norm.weight": torch.ones(192), "head.bias": torch.ones(10)}
    torch.save({"model": state, "epoch": 9, "args": argparse.Namespace(lr=0.1)}, "tuned.pth")
    text = done("import", "tuned.pth")
    assert f"{TINY} (layout timm), {len(model.encoder.state_dict())} entries" in text
    assert "dropped: 2: fc_norm.weight, head.bias" in text
    found, _ = read_weights(Path("data/weights/tuned.safetensors"))
    assert equal(found, model, "encoder.")


def test_networks_with_a_pyramid(project: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("pvt_v2_b0").state_dict()
    found = import_state(state, source="x", name="x")
    assert found.card.encoder == "pvt_v2_b0" and found.card.dropped == ("head.bias", "head.weight")
    whole = timm.create_model("convnext_atto").state_dict()
    save_file(whole, "atto.safetensors")
    text = refused("import", "atto.safetensors")
    assert "not recognised (its keys begin with" in text and "--encoder" in text
    done("import", "atto.safetensors", "--encoder", "timm:convnext_atto")
    found_tensors, card = read_weights(Path("data/weights/atto.safetensors"))
    torch.manual_seed(1)
    encoder = create_encoder("timm:convnext_atto")
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in found_tensors.items()})
    assert torch.equal(encoder.net.stem[0].weight, whole["stem.0.weight"])
    assert card.dropped and all(key.startswith("head.") for key in card.dropped)


# --- other files -----------------------------------------------------------------------------------------


def test_our_own_checkpoints(project: Path) -> None:
    model = model_of("trans4pass_nano", 13, decoder="segformer", width=16)
    save_model(Path("model.safetensors"), model, make_card(model, label_space="cs13", stage="adapt", seed=4))
    text = done("import", "model.safetensors", "--name", "adapted")
    assert "trans4pass_nano with segformer, 13 classes (layout panoda checkpoint)" in text
    found, card = read_weights(Path("data/weights/adapted.safetensors"))
    assert equal(found, model) and (card.label_space, card.width) == ("cs13", 16)
    assert "stage adapt, seed 4" in card.source
    text = done("show", "adapted")
    assert "label_space: cs13" in text and "encoder.stages" in text and "decoder.predict" in text
    assert f"{sum(p.numel() for p in model.parameters()):,}"[:3] in text


def test_bad_files_are_refused(project: Path) -> None:
    torch.save({"a": torch.ones(1), "code": Path("x")}, "objects.pth")
    assert "more than tensors" in refused("import", "objects.pth")
    torch.save(mit(model_of("mit_b0")), "whole.pth")
    Path("cut.pth").write_bytes(Path("whole.pth").read_bytes()[:5000])
    assert "truncated" in refused("import", "cut.pth")
    assert "none.pth: no such weights file" in refused("import", "none.pth")
    save_file({"conv1.weight": torch.ones(3)}, "foreign.safetensors")
    text = refused("import", "foreign.safetensors")
    assert "not recognised (its keys begin with conv1.weight" in text
    assert "no such weights" in refused("show", "nothing")
    assert "not in this project's layout" in refused("show", "foreign.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil.txt"),)


def test_code_in_a_pickle_is_not_run(project: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "x": Evil()}, "evil.pth")
    text = refused("import", "evil.pth")
    assert "not opened for safety" in text and "(getattr)" in text and "weights_only" not in text
    assert not Path("evil.txt").exists()


# --- the hub ---------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, str]]:
    """A hub that has what lies in a folder; returns what is asked of it."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        path = folder / repository / file
        if not path.is_file():
            raise EntryNotFoundError(f"{path}: not there")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_get_by_names_of_timm(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, project / "hub")
    place = project / "hub/timm/vit_tiny_patch16_224.augreg_in21k"
    place.mkdir(parents=True)
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    save_file(state, place / "model.safetensors")
    file = Path("data/weights/vit_tiny_patch16_224.augreg_in21k.safetensors")
    bodies = []
    for name in (TINY, "vit_tiny_patch16_224.augreg_in21k"):
        text = done("get", name)
        assert f"{TINY} (layout timm)" in text and "norm.weight" in text
        bodies.append(file.read_bytes())
        file.unlink()
    assert bodies[0] == bodies[1]
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors")] * 2
    file.write_bytes(bodies[0])
    _, card = read_weights(file)
    assert (card.encoder, card.tag, card.licence) == (TINY, "augreg_in21k", "apache-2.0")
    assert card.source == "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k"
    with safe_open(str(file), framework="pt") as opened:
        assert set(json.loads(opened.metadata()["card"])) == set(type(card).model_fields)
    table = done("list")
    assert file.name in table and "apache-2.0" in table


def test_get_from_any_repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, project / "hub")
    place = project / "hub/me/mine"
    place.mkdir(parents=True)
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    torch.save(state, place / "pytorch_model.bin")
    (place / "config.json").write_text('{"model_type": "vit"}')
    assert "names no network of timm" in refused("get", "hf-hub:me/mine")
    done("get", "hf-hub:me/mine", "--encoder", TINY)
    (place / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    done("get", "hf-hub:me/mine", "--force")
    torch.save({"x": Evil()}, place / "pytorch_model.bin")
    assert panoda("get", "hf-hub:me/mine", "--force")[0] == 1 and not Path("evil.txt").exists()
    (place / "pytorch_model.bin").unlink()
    assert "none of these files is there" in panoda("get", "hf-hub:me/mine")[1]


def test_no_network_says_what_was_tried_and_what_to_do(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    def offline(repository: str, file: str) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    text = refused("get", "pvt_v2_b1")
    assert (
        "the hub cannot be reached" in text and "/timm/pvt_v2_b1.in1k/resolve/main/model.safetensors" in text
    )
    assert "panoda weights import FILE" in text

    def gated(repository: str, file: str) -> str:
        raise GatedRepoError.__new__(GatedRepoError, "accept the licence first")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    assert "consent" in refused("get", "vit:vit_small_patch16_dinov3.lvd1689m")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mit_b1", "timm has no weights for it; `panoda weights list`"),
        ("nonsense", "unknown encoder 'nonsense'"),
        (
            "vit:vit_tiny_patch16_224.zzz",
            "no weights under that tag; it has vit_tiny_patch16_224.augreg_in21k",
        ),
    ],
)
def test_get_what_is_not_there(name: str, message: str) -> None:
    assert message in refused("get", name)


def test_a_network_of_another_kind_is_refused_before_the_download(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panoda.models.hub._download", lambda repository: pytest.fail("downloaded"))
    assert "'timm:resnet18.a1_in1k' takes networks with a pyramid" in refused("get", "vit:resnet18")


def test_list(project: Path) -> None:
    text = done("list")
    for shown in (
        "mit_b0.pth .. mit_b5.pth",
        "research only",
        "gdown",
        "Trans4PASS, Trans4PASS+",
        "pvt_v2_b5",
    ):
        assert shown in text
    for name in VITS:
        assert f"panoda weights get {name}" in text
    assert "nothing in data/weights yet" in text
    text = done("list", "--encoder", "vit:vit_base_patch16_224.mae")
    assert "vit:vit_base_patch16_224.dino" in text and "cc-by-nc-4.0" in text and "gdown" not in text
    Path("data/weights").mkdir(parents=True)
    Path("data/weights/broken.safetensors").write_text("nothing")
    assert "broken.safetensors" in done("list") and "truncated" in done("list")


def test_starts_without_torch() -> None:
    code = (
        "import sys; from panoda.cli import app\n"
        "assert not {'torch', 'timm', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
