"""`panoda weights`: every layout, made from our own random models by inverse renaming, and every refusal."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
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
from panoda.models.core.checkpoint import make_card, save_model
from panoda.models.encoders.factory import create_encoder
from panoda.models.weights.catalogue import VITS
from panoda.models.weights.importing import import_state
from panoda.models.weights.pretrained import read_weights

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


# --- what trainers and downloads make of weights ---------------------------------------------------------


def imported(*arguments: str) -> tuple[dict[str, Tensor], str]:
    """Tensors and output of an import under the name `x`."""
    text = done("import", *arguments, "--name", "x", "--force")
    return read_weights(Path("data/weights/x.safetensors"))[0], text


@pytest.mark.parametrize(
    "wrap",
    [
        "_orig_mod.{}",
        "model.{}",
        "module.{}",
        "backbone.{}",
        "net.{}",
        "student.{}",
        "model._orig_mod.module.{}",
        "model.backbone._orig_mod.{}",
        "lit.anything.{}",
    ],
)
def test_prefixes_of_wrappers_come_off(project: Path, wrap: str) -> None:
    model = model_of("mit_b0")
    state = {wrap.format(key): value for key, value in mit(model).items()}
    # Beside the whole network, nothing but the network may lie on top.
    rest = {} if wrap == "_orig_mod.{}" else {"n_averaged": torch.tensor(3), "loss.scale": torch.ones(1)}
    torch.save({"state_dict": state | rest}, "w.ckpt")
    found, text = imported("w.ckpt")
    assert equal(found, model, "encoder.") and ("loss.scale" in text or not rest)


def test_prefixes_come_off_a_network_that_is_named_and_a_whole_released_model(project: Path) -> None:
    whole = timm.create_model("convnext_atto").state_dict()
    save_file({f"model.net.{key}": value for key, value in whole.items()}, "atto.safetensors")
    found, _ = imported("atto.safetensors", "--encoder", "timm:convnext_atto")
    assert torch.equal(found["encoder.net.stem.0.weight"], whole["stem.0.weight"])
    model = model_of("trans4pass_nano", 19)
    torch.save({f"model._orig_mod.{key}": value for key, value in released(model).items()}, "t4p.pth")
    assert equal(imported("t4p.pth")[0], model)


def sets() -> tuple[dict[str, Tensor], dict[str, Tensor], Segmenter, Segmenter]:
    trained, averaged = model_of("mit_b0"), model_of("mit_b0")
    averaged.load_state_dict({key: value + 1 for key, value in trained.state_dict().items()})
    return mit(trained), mit(averaged), trained, averaged


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("state_dict", "ema_state_dict"),
        ("student", "teacher"),
    ],
)
def test_averaged_weights_are_taken_and_named(project: Path, usual: str, other: str) -> None:
    trained, averaged, first, second = sets()
    averaged = {f"module.{key}": value for key, value in averaged.items()}
    torch.save({usual: trained, other: averaged, "optimizer": {"state": {0: trained}}, "epoch": 2}, "w.pth")
    found, text = imported("w.pth")
    assert equal(found, second, "encoder.")
    assert f"averaged weights of {other}" in text and f"{usual} (" in text
    found, text = imported("w.pth", "--part", usual)
    assert equal(found, first, "encoder.") and f"weights of {usual}" in text and "averaged" not in text
    torch.save({other: averaged}, "w.pth")
    assert equal(imported("w.pth")[0], second, "encoder.")
    assert "it has no part 'nonsense'" in panoda("import", "w.pth", "--part", "nonsense")[1]


@pytest.mark.parametrize(
    "rest",
    [
        lambda trained: {"ema_state_dict": {"steps": torch.tensor(9), **trained}},
        lambda trained: {"ema_state_dict": trained, "meta": {"mmengine_version": "0.10.4"}},
        lambda trained: {"current_model_state": trained, "averaging_state": {"n_averaged": torch.tensor(9)}},
    ],
)
def test_two_trainers_keep_averaged_weights_under_state_dict(project: Path, rest: Any) -> None:
    trained, averaged, _, second = sets()
    torch.save({"state_dict": averaged, **rest(trained)}, "w.pth")
    found, text = imported("w.pth")
    assert equal(found, second, "encoder.") and "averaged weights of state_dict" in text


def test_several_sets_by_prefix(project: Path) -> None:
    trained, averaged, first, second = sets()
    both = {f"model.{k}": v for k, v in trained.items()} | {f"ema_model.{k}": v for k, v in averaged.items()}
    torch.save({"state_dict": both}, "w.ckpt")
    found, text = imported("w.ckpt")
    assert equal(found, second, "encoder.") and "averaged weights of state_dict.ema_model" in text
    assert equal(imported("w.ckpt", "--part", "model")[0], first, "encoder.")
    # A teacher of another size is no average.
    larger = mit(model_of("mit_b1"))
    torch.save({"student": trained, "teacher": larger}, "w.ckpt")
    text = panoda("import", "w.ckpt")[1]
    assert "several sets of weights: student (" in text and "--part" in text
    assert equal(imported("w.ckpt", "--part", "student")[0], first, "encoder.")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "own"])
def test_values_that_are_not_finite_are_refused_by_name(project: Path, kind: str) -> None:
    state = {key: value.clone() for key, value in mit(model_of("mit_b0")).items()}
    state["head.bias"][0] = float("nan")  # is dropped
    state["norm1.bias"][:3] = float("nan")
    state["block1.0.norm1.weight"][0] = float("-inf")
    if kind == "own":
        model = model_of("mit_b0")
        torch.nn.init.constant_(model.encoder.stages[0].norm.bias[:3], float("nan"))
        model.encoder.stages[0].blocks[0].norm1.weight.data[0] = float("inf")
        save_model(Path("w.own"), model, make_card(model, label_space="cs13", stage="adapt", seed=4))
    elif kind == "pth":
        torch.save(state, "w.pth")
    else:
        save_file(state, "w.safetensors")
    text = refused("import", f"w.{kind}")
    assert "2 of" in text and "NaN or infinite values" in text
    assert "encoder.stages.0.norm.bias (3 of 32)" in text
    assert "encoder.stages.0.blocks.0.norm1.weight (1 of 32)" in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(project: Path, dtype: torch.dtype) -> None:
    model = model_of("mit_b0")
    torch.save({key: value.to(dtype) for key, value in mit(model).items()}, "w.pth")
    found, _ = imported("w.pth")
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert torch.equal(found["encoder.stages.0.norm.bias"], model.encoder.stages[0].norm.bias)
    if dtype is torch.float64:
        torch.save({key: value.to(dtype) * 1e300 for key, value in mit(model).items()}, "w.pth")
        assert "NaN or infinite" in panoda("import", "w.pth")[1]


def test_quantised_misshapen_and_tied_tensors(project: Path) -> None:
    state = mit(model_of("mit_b0"))
    key, ours = "block1.0.attn.q.weight", "stages.0.blocks.0.attn.q.weight"
    for bad, name in (
        (state[key].to(torch.int8), "int8"),
        (torch.quantize_per_tensor(state[key].detach(), 0.1, 0, torch.qint8), "qint8"),
        (state[key].detach().to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ):
        torch.save(state | {key: bad}, "w.pth")
        text = refused("import", "w.pth")
        assert "1 of another type (quantised?)" in text and f"{ours} is {name}, expected float32" in text
    torch.save(state | {key: state[key][:5]}, "w.pth")
    assert f"{ours} is (5, 32), expected (32, 32)" in refused("import", "w.pth")
    torch.save(state | {"norm1.weight": state["norm1.bias"]}, "w.pth")
    found, _ = imported("w.pth")
    assert torch.equal(found["encoder.stages.0.norm.weight"], found["encoder.stages.0.norm.bias"])


def files() -> dict[str, Any]:
    """Name -> how to make a file that holds no weights to be read."""
    layer = torch.nn.Linear(2, 2)

    def zipped(path: Path, *names: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return {
        "scripted.pt": lambda path: torch.jit.save(torch.jit.script(layer), path),
        "page.pth": lambda path: path.write_text("\n<!DOCTYPE html><html>Too many users</html>"),
        "page.safetensors": lambda path: path.write_text("<html>404</html>"),
        "pointer.bin": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        "program.pt2": lambda path: zipped(path, "program/archive_format", "program/data/x"),
        "jax.npz": lambda path: zipped(path, "a.npy"),
        "files.zip": lambda path: zipped(path, "folder/weights.pth"),
        "files.tgz": lambda path: path.write_bytes(b"\x1f\x8b" + bytes(20)),
        "keras.h5": lambda path: path.write_bytes(b"\x89HDF\r\n" + bytes(20)),
        "model.onnx": lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch"),
        "renamed.pth": lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch"),
        "module.pth": lambda path: torch.save(layer, path),
        "optimiser.pth": lambda path: torch.save(torch.optim.AdamW(layer.parameters()).state_dict(), path),
        "training.pth": lambda path: torch.save({"optimizer": {"state": {}}, "epoch": 3}, path),
        "settings.json": lambda path: path.write_text("{}"),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scripted.pt", "a TorchScript archive, a compiled program"),
        ("page.pth", "a web page, not weights"),
        ("page.safetensors", "a web page, not weights"),
        ("pointer.bin", "a pointer of Git LFS"),
        ("program.pt2", "a program of torch.export"),
        ("jax.npz", "an archive of NumPy arrays"),
        ("files.zip", "a ZIP archive without a checkpoint of PyTorch inside (folder/weights.pth)"),
        ("files.tgz", "an archive; unpack it"),
        ("keras.h5", "an HDF5 file"),
        ("model.onnx", "an ONNX file, a program"),
        ("renamed.pth", "an ONNX file, a program"),
        ("module.pth", "such as a whole model, which is not opened for safety"),
        ("optimiser.pth", "no weights, but perhaps an optimiser's state"),
        ("training.pth", "no weights, but perhaps an optimiser's state"),
        ("settings.json", "a JSON file without weights"),
    ],
)
def test_other_files_are_told_apart(project: Path, name: str, message: str) -> None:
    files()[name](project / name)
    text = refused("import", name)
    assert name in text and message in text and "weights_only" not in text and "Traceback" not in text


def test_a_model_in_several_files_is_read_by_its_index(project: Path) -> None:
    model = model_of("mit_b0")
    state = {key: value.clone() for key, value in mit(model).items()}
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, name)
    where = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = Path("model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    text = done("import", str(index))
    found, card = read_weights(Path("data/weights/model.safetensors"))
    assert equal(found, model, "encoder.") and card.source.count("SHA-256") == 2 and "wrote" in text
    Path(names[1]).unlink()
    assert f"{names[1]}: no such weights file" in panoda("import", str(index))[1]


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
    monkeypatch.setattr("panoda.models.weights.hub._download", lambda repository: pytest.fail("downloaded"))
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
        "import sys; from panoda.cli.app import app\n"
        "assert not {'torch', 'timm', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
