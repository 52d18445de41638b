"""`panoda summary`: the result table, without models that a stage of 0 steps passed through."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from panoda.cli import app as cli


@pytest.fixture
def evaluated(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    folder = tmp_path / "outputs/evaluate"
    folder.mkdir(parents=True)
    scores = {"source_val": {"miou": 0.5}, "target_test": {"miou": 0.25}}
    (folder / "metrics.json").write_text(
        json.dumps(dict.fromkeys(("source_only", "warmup", "round1"), scores))
    )
    return folder


def write_models(folder: Path, copies: tuple[str, ...]) -> None:
    names = ("source_only", "warmup", "round1")
    models = {name: {"same_weights_as": "source_only" if name in copies else None} for name in names}
    (folder / "models.json").write_text(json.dumps(models))


def test_every_model_has_a_row(evaluated):
    write_models(evaluated, ())
    text = CliRunner().invoke(cli.app, ["summary"]).output
    assert "source-only" in text and "warm-up" in text and "adapted" in text and text.count("25.0") == 3
    assert "no steps" not in text


def test_models_passed_through_have_none(evaluated):
    write_models(evaluated, ("warmup", "round1"))
    text = CliRunner().invoke(cli.app, ["summary"]).output
    assert text.count("25.0") == 1 and "no steps, so no models of their own: warm-up, adapted" in text
