"""What makes `dvc repro` run stage download again: any change in a data set's folder, whatever its path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from panoda.config import CityDataset, DeclaredDataset, FolderDataset
from panoda.data.watch import look, main


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


def test_declaration_and_label_space_wherever_they_lie(home):
    Path("space.yaml").write_text("names: [a]\n")
    tree = {"name": "mine", "title": "Mine", "projection": "erp", "fov_x_deg": 360.0}
    tree |= {"labels": {"space": "space.yaml"}, "splits": {"train": {"images": ["{id}.jpg"]}}}
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    section = {
        "kind": "declared",
        "declaration": "~/mine.yaml",
        "path": "panos",
        "splits": {"train": "train"},
    }
    dataset = DeclaredDataset.model_validate(section)
    first = look(dataset)
    assert first["files"] == 4
    Path("space.yaml").write_text("names: [ab]\n")
    second = look(dataset)
    Path("mine.yaml").write_text("broken: [")
    assert len({value["sha256"] for value in (first, second, look(dataset))}) == 3


def test_the_command(home, capsys):
    root = Path(__file__).resolve().parents[1]
    Path("params.yaml").write_text((root / "scenarios/camvid_to_folder.yaml").read_text())
    main("target")
    assert '"files": 0' in Path(".panoda/watch/target.json").read_text()
    with pytest.raises(SystemExit, match="error: third: no domain of section data; there are source, target"):
        main("third")
    Path("params.yaml").write_text("a: [")
    with pytest.raises(SystemExit, match=r"params\.yaml: not valid YAML"):
        main("target")


def test_a_rendered_data_set_has_no_folder(home):
    tree = yaml.safe_load((Path(__file__).resolve().parents[1] / "params.yaml").read_text())
    assert look(CityDataset.model_validate(tree["data"]["source"]["dataset"]))["files"] == 0
