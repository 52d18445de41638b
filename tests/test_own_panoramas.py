"""From a model file and a folder of panoramas to a model: resumable, in MLflow, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from panoda.cli.app import app
from panoda.models.core.checkpoint import load_model
from panoda.pipeline import own_panoramas


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three full panoramas; the tests run beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_panoramas, "PIXELS_PER_DEGREE", 0.4)
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_a_killed_adaptation_goes_on_where_it_was(
    photos: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    command = [
        "adapt",
        "photos",
        "--checkpoint",
        str(checkpoint),
        "--out",
        "own",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(own_panoramas, "adapt", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert CliRunner().invoke(app, command).exit_code != 0
    assert not Path("own").exists() and list(Path(".panoda/state").glob("own_panoramas-*/data/pseudo_labels"))
    with monkeypatch.context() as patch:
        for done in ("preprocess", "pseudo_labels"):
            patch.setattr(own_panoramas, done, lambda **_: pytest.fail("made again"))
        ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    assert "own/model.safetensors: the teacher labels" in ran.output
    assert load_model(Path("own/model.safetensors"))[1].stage == "adapt"
    assert not list(Path(".panoda/state").glob("own_panoramas-*"))
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').resolve()}")
    (run,) = mlflow.search_runs(experiment_names=["own_panoramas"], output_format="list")
    assert run.info.status == "FINISHED" and run.data.params["adapt.method"] == "source_free"
    assert "loss/total" in run.data.metrics


def test_what_does_not_go_is_said_and_nothing_is_written(
    photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/letter.txt").write_text("mine")
    for folder, out, said in (("nowhere", "own", "no such folder"), ("photos", "kept", "holds other files")):
        ran = CliRunner().invoke(app, ["adapt", folder, "--checkpoint", str(checkpoint), "--out", out])
        assert ran.exit_code != 0 and said in f"{ran.output}{ran.exception}"
    assert (tmp_path / "kept/letter.txt").read_text() == "mine" and not (tmp_path / "own").exists()
