"""The content of files that params.yaml names is part of what identifies a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from panoda.config import parse_params
from panoda.config.scenarios import load_scenario
from panoda.pipeline.named_files import named_files

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The small city in a label space of one's own, and a declared source."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("names: [road, house]\n")
    labels = {"space": "../mine.yaml"}
    splits = {
        name: {"images": [f"{name}/{{id}}.png"], "labels": [f"{name}/{{id}}_l.png"]}
        for name in ("train", "val")
    }
    own = {"name": "own", "title": "Own", "projection": "pinhole", "fov_x_deg": 60, "labels": labels}
    Path("own").mkdir()
    Path("own/own.yaml").write_text(yaml.safe_dump(own | {"splits": splits}))
    tree = load_scenario("city_small", folder=ROOT / "scenarios").model_dump(mode="json")
    tree["label_space"] = "mine.yaml"
    tree["data"]["source"]["dataset"] = {
        "kind": "declared",
        "declaration": "own/own.yaml",
        "path": "own",
        "splits": {"train": "train", "val": "val"},
    }
    return tree


def test_files_by_stage(tree: dict) -> None:
    params = parse_params(tree)
    declared = {"declaration": Path("own/own.yaml"), "declared_space": Path("own/../mine.yaml")}
    assert named_files("download", "source", params) == declared
    assert named_files("preprocess", "source", params) == declared | {"label_space": Path("mine.yaml")}
    assert named_files("preprocess", "target", params) == {"label_space": Path("mine.yaml")}
    assert named_files("pretrain", None, params) == named_files("download", "target", params) == {}


def test_a_run_by_hand_is_another_one_when_the_content_changes(tree: dict) -> None:
    pytest.importorskip("prefect")
    from flows.execution import _digests, _record
    from flows.job import Job
    from panoda.pipeline.table import get_stage

    marks = []
    for names in ("[road, house]", "[house, road]"):
        Path("mine.yaml").write_text(f"names: {names}\n")
        record = _record(get_stage("preprocess"), "target", parse_params(tree), {}, Job())
        marks.append(_digests(record)["label_space"])
    assert marks[0] != marks[1]
