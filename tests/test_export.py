"""Exported files are the model, say what they are, predict panoramas, and are refused when they differ."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from panoda.cli.app import app
from panoda.cli.models import explain
from panoda.deployment import export
from panoda.deployment.export import export_model, fixed_because
from panoda.deployment.export_check import sample_images
from panoda.deployment.exported import ExportedModel, card_text, load_exported, read_export_card
from panoda.deployment.predict import predict_files
from panoda.labels import get_label_space
from panoda.models import CheckpointError, create_model
from panoda.models.core.checkpoint import ModelCard, make_card, save_model
from panoda.models.core.segmenter import Segmenter

SIZE = (64, 128)


def model_of(encoder: str, decoder: str, **options: object) -> tuple[Segmenter, ModelCard]:
    """A model with offsets and logits as large as training makes them."""
    torch.manual_seed(0)
    model = create_model(encoder, decoder=decoder, num_classes=13, drop_path=0.0, **options).eval()  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("offset_conv", "modulator_conv", "pointwise")):
            nn.init.normal_(parameter, std=0.05)
        if name == "decoder.predict.weight":
            nn.init.normal_(parameter, std=0.3)
    return model, make_card(model, label_space="cs13", stage="pretrain", seed=0)


@pytest.fixture(scope="module")
def panorama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (8, 20, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("panorama") / "a.png"
    Image.fromarray(values).resize((200, 80)).save(path)
    return path


@pytest.fixture(scope="module")
def mit_onnx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[export.ExportResult, Path]]:
    """MiT and SegFormer of any size as ONNX, and their checkpoint."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("mit")
    model, card = model_of("mit_b0", "segformer", width=32)
    save_model(folder / "model.safetensors", model, card)
    yield export_model(model, card, folder, size=SIZE, dynamic=True), folder / "model.safetensors"


def test_onnx_of_any_size_says_what_it_is(mit_onnx: tuple[export.ExportResult, Path]) -> None:
    result, _ = mit_onnx
    card = read_export_card(result.path)
    assert card == result.card and (card.height, card.width, card.batch, card.cell) == (None, None, None, 1)
    assert (
        card.class_names == get_label_space("cs13").names and card.palette == get_label_space("cs13").palette
    )
    assert card.model.name == "mit_b0" and card.mean == (0.485, 0.456, 0.406) and card.opset == export.OPSET
    assert [c.shape[0] for c in result.checks] == [1, 2] and result.checks[0].shape[1:] != result.checks[
        1
    ].shape[1:]
    assert all(
        c.agreement >= 0.999 and c.difference is not None and c.difference < 1e-4 for c in result.checks
    )
    assert result.megabytes == result.path.stat().st_size / 1e6
    assert [p.name for p in result.path.parent.iterdir() if p.name.startswith(".")] == []


def test_onnx_labels_a_panorama_as_the_checkpoint_does(
    mit_onnx: tuple[export.ExportResult, Path], panorama: Path, tmp_path: Path
) -> None:
    result, checkpoint = mit_onnx
    found, wanted = (
        np.asarray(Image.open(predict_files(path, [panorama], tmp_path / path.suffix).labels[0]))
        for path in (result.path, checkpoint)
    )
    assert found.shape == (80, 200) and len(np.unique(wanted)) > 1
    assert (found == wanted).mean() >= 0.999


def test_deformable_model_as_torch_program(tmp_path: Path) -> None:
    model, card = model_of("trans4pass_nano", "dmlpv2", width=16)
    result = export_model(model, card, tmp_path, format="torch", size=SIZE)
    assert result.path.name == "model.pt2" and read_export_card(result.path) == result.card
    exported = ExportedModel(result.path)
    x = torch.randn(3, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"takes images of 64x128 pixels .* found 40x64"):
        exported(x[:1, :, :40, :64])


def test_deformable_operator_in_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from panoda.models.deform.layers import DeformableConv, DeformableMLP

    torch.manual_seed(0)
    layers = nn.Sequential(
        DeformableConv(3, 8, kernel_size=7, stride=4, padding=3),
        DeformableConv(8, 8, kernel_size=3, stride=1, padding=1),
        DeformableMLP(8),
    ).eval()
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.1)
    sides = {2: torch.export.Dim("h", min=64, max=512), 3: torch.export.Dim("w", min=64, max=512)}
    program = torch.export.export(layers, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sides,), strict=False)
    torch.onnx.export(program, f=tmp_path / "a.onnx", dynamo=True, opset_version=20, verbose=False)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    x = 3 * torch.randn(2, 3, 77, 130)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), layers(x), rtol=0, atol=1e-4)


def test_fixed_size_bytes_to_labels(tmp_path: Path, panorama: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, card = model_of("vit:vit_tiny_patch16_224", "setr_naive", width=16, blocks=[0, 1])
    options = {"uint8": True, "labels": True, "batch": 2}
    result = export_model(model, card, tmp_path, size=SIZE, **options)
    assert [c.shape for c in result.checks] == [(2, *SIZE)] and result.checks[0].difference is None
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    labels = ExportedModel(result.path).raw(images)
    with torch.no_grad():
        wanted = model(export.normalise(images)).argmax(dim=1)
    assert labels.dtype == torch.uint8 and (labels == wanted).float().mean() >= 0.999
    with pytest.raises(ValueError, match="takes uint8 images and gives labels"):
        predict_files(result.path, [panorama], tmp_path / "out")


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(ExportedModel):
        def raw(self, images: torch.Tensor) -> torch.Tensor:
            return super().raw(images).roll(1, dims=1)

    model, card = model_of("vit:vit_tiny_patch16_224", "setr_naive", width=16, blocks=[0])
    (tmp_path / "model.pt2").write_bytes(b"before")
    monkeypatch.setattr(export, "ExportedModel", Wrong)
    with pytest.raises(ValueError, match=r"is not the model .* nothing was written"):
        export_model(model, card, tmp_path, format="torch", size=SIZE)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model.pt2", b"before")]


def test_sizes_that_stay_open() -> None:
    def fixed(name: str, decoder: str, **options: object) -> str:
        return fixed_because(model_of(name, decoder, width=16, **options)[0])

    assert fixed("trans4pass_nano", "dmlp") == ""
    assert fixed("vit:vit_tiny_patch16_224", "setr_naive", blocks=[0]) == ""
    assert fixed("vit:vit_small_patch14_dinov2", "upernet", blocks=[0, 1, 2, 3]) == ""
    assert "circle of one width" in fixed("vit:vit_tiny_patch16_224", "setr_naive", blocks=[0], wrap=True)
    assert "attends in windows" in fixed("timm:swin_tiny_patch4_window7_224", "fcn")
    beit = model_of("vit:beit_base_patch16_224", "setr_naive", width=16, blocks=[0])
    with pytest.raises(ValueError, match=r"made for one size; give --height and --width"):
        export_model(*beit, Path("nowhere"), format="torch", dynamic=True)


# Odd, of no multiple, as small as the models go, twice as wide as high, and with a panorama's margins.
SIZES = ((64, 128), (65, 129), (77, 131), (48, 96), (32, 33), (101, 202), (90, 180 + 64))


@pytest.mark.parametrize(
    ("encoder", "decoder", "blocks"),
    [
        ("mit_b0", "upernet", None),
        ("vit:test_vit", "setr_naive", [0]),
        ("vit:test_vit", "setr_pup", [0]),
        ("vit:test_vit", "setr_mla", [0, 1]),
        ("vit:test_vit", "segformer", [0, 1, 2, 3]),
        ("vit:vit_small_patch14_dinov2", "segformer", [0, 1, 2, 3]),
        ("timm:test_convnext", "fcn", None),
    ],
)
def test_one_onnx_file_gives_the_models_labels_at_every_size(
    encoder: str, decoder: str, blocks: list[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    from panoda.models.encoders import factory as encoders

    small = encoders.MitShape((1, 1, 1, 1), (8, 16, 24, 32), (1, 1, 1, 1))
    monkeypatch.setitem(encoders.SHAPES, "mit_b0", small)
    model, card = model_of(encoder, decoder, width=16, blocks=blocks)
    result = export_model(model, card, tmp_path, size=SIZE, dynamic=True)
    assert result.card.height is None and all(side % 2 for side in result.checks[1].shape[1:])
    exported = ExportedModel(result.path)
    for number, size in enumerate(SIZES):
        images = sample_images((1 + number % 2, *size), result.card, seed=number)
        with torch.no_grad():
            wanted, found = model(images), exported.raw(images)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
        assert (found.argmax(dim=1) == wanted.argmax(dim=1)).float().mean() >= 0.999, size


def test_a_panorama_of_no_multiple_gets_the_labels_of_the_checkpoint(panorama: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, card = model_of("vit:test_vit", "setr_naive", width=16, blocks=[0])
    save_model(tmp_path / "model.safetensors", model, card)
    export_model(model, card, tmp_path, size=SIZE, dynamic=True)
    found, wanted = (
        np.asarray(Image.open(predict_files(tmp_path / name, [panorama], tmp_path / "out").labels[0]))
        for name in ("model.onnx", "model.safetensors")
    )
    assert len(np.unique(wanted)) > 1 and (found == wanted).mean() >= 0.999


def test_a_file_of_one_size_takes_no_other(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    # Sides that the patch does not divide.
    model, card = model_of("vit:test_vit", "setr_naive", width=16, blocks=[0], wrap=True)
    result = export_model(model, card, tmp_path, size=(70, 90))
    exported = ExportedModel(result.path)
    images = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="takes images of 70x90 pixels .* found 64x96"):
        exported(torch.randn(1, 3, 64, 96))
    with pytest.raises(Exception, match="invalid dimensions"):
        exported.raw(torch.randn(1, 3, 64, 96))


def test_an_exporter_that_gives_up_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = torch.export.export

    def gives_up(*arguments: Any, dynamic_shapes: Any, **keywords: Any) -> Any:
        if 2 in dynamic_shapes[0]:
            raise RuntimeError("Constraints violated (width)! For more information, run with TORCH_LOGS")
        return traced(*arguments, dynamic_shapes=dynamic_shapes, **keywords)

    monkeypatch.setattr(torch.export, "export", gives_up)
    model, card = model_of("vit:test_vit", "setr_naive", width=16, blocks=[0])
    card = card.model_copy(update={"params": {"prepared": {"height": 64, "width": 128}}})
    with pytest.raises(
        ValueError, match=r"cannot follow .* for any size; give --height and --width"
    ) as error:
        export_model(model, card, tmp_path, format="torch", dynamic=True)
    assert "Constraints" not in str(error.value) and list(tmp_path.iterdir()) == []
    result = export_model(model, card, tmp_path, format="torch")
    assert (result.card.height, result.card.width) == (64, 128)
    assert "height and width are fixed: torch.export cannot follow" in explain(result)


def test_files_of_earlier_versions_that_wanted_multiples_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, card = model_of("vit:test_vit", "setr_naive", width=16, blocks=[0])
    result = export_model(model, card, tmp_path, size=SIZE)
    proto = onnx.load(str(result.path))
    onnx.helper.set_model_props(proto, {"panoda": card_text(result.card).replace('"cell": 1', '"cell": 16')})
    onnx.save(proto, str(result.path))
    with pytest.raises(CheckpointError, match="export the checkpoint again"):
        read_export_card(result.path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--height", "64"], "both --height and --width"),
        (["--dynamic", "--height", "64", "--width", "64"], "leaves the size open"),
        (["--batch", "many"], "expected `dynamic` or a number"),
        (["--run", "somewhere"], "one of the two"),
    ],
)
def test_wrong_options_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["export", "a.safetensors", "--out", str(tmp_path), *arguments])
    assert isinstance(result.exception, ValueError) and message in str(result.exception)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated or not a program"):
        read_export_card(tmp_path / "a.pt2")
    with pytest.raises(CheckpointError, match="no such exported model"):
        read_export_card(tmp_path / "b.onnx")
    onnx = pytest.importorskip("onnx")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), str(tmp_path / "c.onnx"))
    with pytest.raises(CheckpointError, match="not a model that `panoda export` wrote"):
        read_export_card(tmp_path / "c.onnx")
    (tmp_path / "d.onnx").write_bytes(json.dumps({}).encode() + b"\xff" * 40)
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        read_export_card(tmp_path / "d.onnx")


def test_missing_extra_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    model, card = model_of("vit:vit_tiny_patch16_224", "setr_naive", width=16, blocks=[0])
    with pytest.raises(ValueError, match=r"needs the extra `export`"):
        export_model(model, card, tmp_path, size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_program_with_pickles_is_not_opened(tmp_path: Path) -> None:
    net, card = model_of("mit_b0", "segformer")
    made = export.export_model(net, card, tmp_path, format="torch", size=(64, 64)).path
    with zipfile.ZipFile(made) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = next(name for name in content if name.endswith("weights_config.json"))
    sample = next(name for name in content if "/data/sample_inputs/" in name)
    pickled = io.BytesIO()
    torch.save(([Path("x")],), pickled)
    for name, changed in (
        (config, content[config].replace(b'"use_pickle": false', b'"use_pickle": true', 1)),
        (sample, pickled.getvalue()),
        (config.replace("weights/", "constants/").replace("_weights_config.json", ".pt"), b""),
    ):
        with zipfile.ZipFile(tmp_path / "changed.pt2", "w") as archive:
            for entry, data in {**content, name: changed}.items():
                archive.writestr(entry, data)
        with pytest.raises(CheckpointError, match="pickled objects .*, which could run code"):
            load_exported(tmp_path / "changed.pt2")
