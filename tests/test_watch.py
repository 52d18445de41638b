"""What makes `dvc repro` run stage download again: any change in a data set's folder, whatever its path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from panoda.config import CityDataset, FolderDataset
from panoda.config.scenarios import open_scenario
from panoda.pipeline.watch import FOLDER, look, main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, now the current one, with two panoramas in panos."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("panos/day1").mkdir(parents=True)
    for name in ("a", "b"):
        Path(f"panos/day1/{name}.jpg").write_text(name)
    return tmp_path


def folder(path="panos"):
    return FolderDataset(kind="folder", path=str(path))


def test_every_way_to_write_a_path_is_the_same(home):
    found = look(folder())
    assert (found["files"], found["bytes"]) == (2, 2)
    for path in ("~/panos", home / "panos", "./panos/", "panos/../panos"):
        assert look(folder(path)) == found
    assert look(folder("nowhere"))["files"] == 0


def test_what_is_seen(home):
    states = [look(folder())]

    def changed() -> bool:
        states.append(look(folder()))
        return states[-1] not in states[:-1]

    os.utime("panos/day1/a.jpg", (1, 1))
    assert changed()
    Path("panos/day1/gone.png").symlink_to("nowhere")
    assert changed()
    Path("elsewhere").mkdir()
    Path("panos/day2").symlink_to(home / "elsewhere")
    Path("elsewhere/x.jpg").write_text("x")
    assert changed()
    Path("elsewhere/x.jpg").write_text("xyz")
    assert changed()
    Path("panos/day1/b.jpg.part").touch()
    assert not changed()


def test_declaration_and_label_spaces_by_content_wherever_they_lie(home):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    Path("space.yaml").write_text("names: [a, b]\n")
    own = {"name": "mine", "title": "Mine", "projection": "erp", "fov_x_deg": 360.0}
    own |= {"labels": {"space": "space.yaml"}}
    own["splits"] = {
        s: {"images": [f"{s}/{{id}}.jpg"], "labels": [f"{s}/{{id}}.png"]} for s in ("train", "val")
    }
    Path("mine.yaml").write_text(yaml.safe_dump(own))
    tree["data"]["source"]["dataset"] = {
        "kind": "declared",
        "declaration": "~/mine.yaml",
        "path": "panos",
        "splits": {"train": "train", "val": "val"},
    }
    Path("run.yaml").write_text("names: [x, y]\n")
    tree["label_space"] = str(home / "run.yaml")
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    names = [f"{role}{kind}.json" for role in ("source", "target") for kind in ("", ".named")]

    def changed() -> set[str]:
        before = {name: (FOLDER / name).read_text() if FOLDER.exists() else "" for name in names}
        main()
        return {name for name in names if (FOLDER / name).read_text() != before[name]}

    assert changed() == set(names) and changed() == set()
    for file in ("mine.yaml", "space.yaml", "run.yaml"):
        os.utime(file, (1, 1))
    assert changed() == set(), "the content counts"
    Path("space.yaml").write_text("names: [b, a]\n")  # as many bytes
    assert changed() == {"source.json", "source.named.json"}
    Path("run.yaml").write_text("names: [y, x]\n")
    assert changed() == {"source.named.json", "target.named.json"}
    Path("mine.yaml").write_text("broken: [")
    assert changed() == {"source.json", "source.named.json"}


def test_a_tokenizer_by_content(home):
    tree = yaml.safe_load(open_scenario("city_beit", folder=ROOT / "scenarios").text())
    tree["ssl"]["tokenizer"]["weights"] = "mine.safetensors"
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    seen = []
    for content in ("a", "b"):
        Path("mine.safetensors").write_text(content)
        main()
        seen.append((FOLDER / "ssl_pretrain.json").read_text())
    assert seen[0] != seen[1] and "tokenizer" in seen[0]


def test_the_command(home):
    Path("params.yaml").write_text(open_scenario("real", folder=ROOT / "scenarios").text())
    main()
    assert '"files": 0' in Path(".panoda/watch/target.json").read_text()
    Path("params.yaml").write_text("a: [")
    with pytest.raises(SystemExit, match=r"params\.yaml: not valid YAML"):
        main()


def test_a_rendered_data_set_has_no_folder(home):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert look(CityDataset.model_validate(tree["data"]["source"]["dataset"]))["files"] == 0


def test_why_everything_runs_again_after_code_has_moved(home, capsys):
    Path("params.yaml").write_text(open_scenario("real", folder=ROOT / "scenarios").text())
    Path("panoda/labels").mkdir(parents=True)
    deps = [{"path": "data/raw/gone"}, {"path": "panoda/labels"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"pretrain": {"deps": deps}, "watch": {}}}))
    main()
    assert capsys.readouterr().out == ""
    deps.append({"path": "panoda/training/losses.py"})
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"pretrain": {"deps": deps}}}))
    main()
    said = capsys.readouterr().out
    assert "whose code lay elsewhere (panoda/training/losses.py): the stages run again once" in said
