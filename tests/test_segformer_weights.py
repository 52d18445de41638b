"""SegFormer of transformers as a complete model: equal outputs, its card, and every refusal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import panoda
from panoda.labels import get_label_space
from panoda.models.core.checkpoint import load_model
from panoda.models.weights.catalogue import SEGFORMERS
from panoda.models.weights.pretrained import read_weights

transformers = pytest.importorskip("transformers")
NAME = "segformer-b0-cityscapes"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "220")
    return tmp_path


def saved(**changes: Any) -> Any:
    """A model of transformers with random weights, saved as ./saved."""
    torch.manual_seed(3)
    names = dict(enumerate(get_label_space("cs19").names))
    config = transformers.SegformerConfig(
        **{"id2label": names, "label2id": {v: k for k, v in names.items()}} | changes
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * (0.2 if value.ndim == 1 else 0.02))
        for name, value in model.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
    model.save_pretrained("saved")
    for name, module in model.named_modules():  # the epsilon that the published weights were trained with
        if re.search(r"layernorm_before|layernorm_after|^segformer\.stages\.\d\.layer_norm", name):
            module.eps = 1e-6
    return model


def refused(*arguments: str) -> str:
    status, text = command_line.panoda("weights", *arguments)
    assert status == 1 and not list(Path("data/weights").glob("*")), text
    return text


def done(*arguments: str) -> str:
    status, text = command_line.panoda("weights", *arguments)
    assert status == 0, text
    return text


B1 = {"hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 256}


@pytest.mark.parametrize("changes", [{}, {"decoder_hidden_size": 16}, B1])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_outputs_equal_those_of_transformers(kind: str, changes: dict[str, Any]) -> None:
    theirs = saved(**changes)
    folder = Path("saved")
    if kind == "bin":  # as most of the published repositories have it
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    text = done("import", "saved", "--name", NAME)
    assert (
        "with segformer, 19 classes (layout segformer of transformers)" in text and "panoda predict" in text
    )
    ours, card = load_model(Path(f"data/weights/{NAME}.safetensors"), space=get_label_space("cs19"))
    assert card.name == ("mit_b1" if changes is B1 else "mit_b0") and card.label_space == "cs19"
    assert card.mean == (0.485, 0.456, 0.406) and card.params["prepared"]["projection"] == "pinhole"
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        expected = F.interpolate(theirs(x).logits, size=(96, 160), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=1e-4)
    tensors, weights = read_weights(Path(f"data/weights/{NAME}.safetensors"))
    assert weights.decoder == "segformer" and weights.source.startswith(("model", "pytorch_model"))
    assert len(tensors) == len(ours.state_dict())


def test_it_predicts_under_its_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"run `panoda weights get {NAME}`"):
        panoda.load(NAME)
    import huggingface_hub

    saved()
    asked = []

    def download(repository: str, file: str) -> str:
        from huggingface_hub.errors import EntryNotFoundError

        asked.append((repository, file))
        if not (project / "saved" / file).is_file():
            raise EntryNotFoundError("no such file")
        return str(project / "saved" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    done("get", NAME)
    assert asked[0] == ("nvidia/segformer-b0-finetuned-cityscapes-1024-1024", "config.json")
    model = panoda.load(NAME, device="cpu")
    assert (
        model.card.params["source"] == f"hf-hub:{SEGFORMERS[NAME]}"
        and "NVIDIA" in model.card.params["licence"]
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    result = model.predict(image)
    assert result.label.shape == (64, 128) and result.space.names == get_label_space("cs19").names
    first = Path(f"data/weights/{NAME}.safetensors").read_bytes()
    done("get", NAME)
    assert first == Path(f"data/weights/{NAME}.safetensors").read_bytes()


def test_the_encoder_alone() -> None:
    saved()
    done("import", "saved/model.safetensors", "--encoder-only", "--name", "b0")
    tensors, card = read_weights(Path("data/weights/b0.safetensors"))
    assert (
        card.encoder == "mit_b0" and card.decoder is None and all(k.startswith("encoder.") for k in tensors)
    )


def changed(**entries: Any) -> None:
    path = Path("saved/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_other_models_are_refused() -> None:
    from safetensors.torch import load_file, save_file

    saved()
    assert "num_classes is 19 in the file, not 13" in refused("import", "saved", "--num-classes", "13")
    assert "are not those of cs13" in refused("import", "saved", "--label-space", "cs13")
    names = [*get_label_space("cs19").names]
    names[0], names[1] = names[1], names[0]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"id2label": dict(enumerate(names))}, "its 19 classes (id2label: sidewalk, road"),
        ({"depths": [2, 2, 2, 3]}, "no MiT of B0 to B5: depths [2, 2, 2, 3]"),
        ({"sr_ratios": [4, 4, 2, 1]}, "no MiT of B0 to B5: sr_ratios [4, 4, 2, 1]"),
        ({"architectures": ["SegformerForImageClassification"]}, "expected segformer"),
        ({"decoder_hidden_size": 8}, "of another shape"),
    ]
    config = Path("saved/config.json").read_text()
    for entries, message in cases:
        changed(**entries)
        assert message in refused("import", "saved")
        Path("saved/config.json").write_text(config)
    state: dict[str, Tensor] = load_file("saved/model.safetensors")
    save_file({k: v for k, v in state.items() if "linear_fuse" not in k}, "saved/model.safetensors")
    assert "1 missing: decoder.fuse.conv.weight" in refused("import", "saved")
    save_file(state | {"segformer.extra": torch.ones(1)}, "saved/model.safetensors")
    assert "1 unexpected: segformer.extra" in refused("import", "saved")
    Path("saved/config.json").unlink()
    assert "put the config.json that was saved with it beside it" in refused("import", "saved")
