"""What ``import panoda`` offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import prepared

import panoda
from panoda.cli.predict import model_file


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = "import sys, panoda; print([m for m in ('torch', 'numpy', 'pandas', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'lode'; it has LabelSpace, create_model"):
        panoda.lode  # noqa: B018


def test_a_model_labels_files_and_arrays_alike(tmp_path: Path, checkpoint: Path) -> None:
    model = panoda.load(checkpoint, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    result = model.predict(tmp_path / "photo.png", height=32)
    assert result.label.shape == (48, 96) and result.label.dtype == np.uint8
    assert sum(result.shares().values()) == pytest.approx(1) and set(result.shares()) == set(
        model.space.names
    )
    assert result.overlay().size == (96, 48) and result.view.wrap
    for same in (pixels, Image.fromarray(pixels), str(tmp_path / "photo.png")):
        assert np.array_equal(model.predict(same, height=32).label, result.label)
    with pytest.raises(ValueError, match="shares by 'pixels': expected 'pixel' or 'solid_angle'"):
        result.shares("pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip.mp4: a video; `panoda predict`"):
        model.predict("clip.mp4")
    with pytest.raises(ValueError, match=r"expected an RGB image \(H, W, 3\) of uint8, found \(48, 96\)"):
        model.predict(pixels[..., 0])


def test_prepared_splits_and_label_spaces(tmp_path: Path) -> None:
    split = panoda.open_split(prepared(tmp_path / "data", {"train": 2}, erp=True) / "train")
    assert len(split) > 0 and split[0]["image"].shape[0] == 3
    assert panoda.get_label_space("cs19").names[0] == "road"


def test_predict_takes_the_last_round_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("adapt", "rounds/round2/adapt", "rounds/round10/adapt"):
        file = Path("outputs", name, "model.safetensors")
        file.parent.mkdir(parents=True)
        file.touch()
    assert model_file(None, None) == Path("outputs/rounds/round10/adapt/model.safetensors")


def test_the_example_of_the_readme(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(checkpoint.read_bytes())
    Image.fromarray(np.full((64, 128, 3), 90, np.uint8)).save("photo.jpg")
    names: dict[str, object] = {}
    exec(example, names)
    assert Path("overlay.jpg").is_file() and "sky" in names["result"].shares()  # type: ignore[attr-defined]
