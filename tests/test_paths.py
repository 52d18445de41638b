"""A path means the same however it is written: relative, absolute or from the home folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import panoda
from PIL import Image

from flows.job import Job
from panoda.config import FolderDataset, load_params
from panoda.data.formats.dataset import list_items
from panoda.labels import get_label_space
from panoda.models import CheckpointError
from panoda.pipeline.table import get_stage
from panoda.stages.download import download
from panoda.stages.weights import weights_file
from panoda.tracking import tracking_uri

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, with the project, the current folder, in it."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)).save(path)
    return path


def test_folder_of_a_data_set(home: Path) -> None:
    image = picture(home / "panos/a.png")
    for path in ("~/panos", "../panos", str(home / "panos")):
        dataset = FolderDataset(kind="folder", path=path)
        download(role="target", dataset=dataset, out=Path("raw"), progress=False)
        assert [item.image.resolve() for item in list_items(dataset, Path("raw"))] == [image]


def test_files_of_parameters_and_label_spaces(home: Path) -> None:
    (home / "space.yaml").write_text("names: [quay, water]\n")
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["label_space"] = "~/space.yaml"
    (home / "mine.yaml").write_text(yaml.safe_dump(tree))
    params = load_params(Path("~/mine.yaml"))
    assert get_label_space(params.label_space).names == ("quay", "water")
    assert get_label_space("../space.yaml").names == get_label_space(str(home / "space.yaml")).names


def test_inputs_and_output_of_a_flow(home: Path) -> None:
    (home / "run").mkdir()
    job = Job(inputs={"checkpoint": "~/run", "target_train": "~/t"}, out="~/out")
    stage = get_stage("pseudo_labels")
    paths = job.input_paths(stage, None, load_params(ROOT / "params.yaml"))
    assert paths == {"checkpoint": home / "run/model.safetensors", "target_train": home / "t"}
    assert job.out_path(stage, None) == home / "out"


def test_the_pipelines_folders_are_refused_through_links_as_well(home: Path) -> None:
    (home / "big").mkdir()
    Path("data").symlink_to(home / "big")
    for out in ("data/x", "~/big/x", str(home / "big/x")):
        with pytest.raises(ValueError, match="not a place for a run by hand"):
            Job(out=out).out_path(get_stage("pseudo_labels"), None)


def test_pretrained_weights(home: Path) -> None:
    folder = Path("data/weights")
    for name in ("a/b", "data/weights/a/b", "~/project/data/weights/a/b", str(folder.absolute() / "a/b")):
        assert weights_file(name, folder) == weights_file(f"{name}.safetensors", folder) == "a/b.safetensors"
    for name in ("~/a", "/a", "../a"):
        with pytest.raises(CheckpointError, match="expected the name of a file below data/weights"):
            weights_file(name, folder)


def test_the_tracking_store(home: Path) -> None:
    assert tracking_uri("sqlite:///~/m.db") == f"sqlite:///{home}/m.db"


def test_arguments_of_the_command(home: Path) -> None:
    picture(home / "data/a.png")
    tree = {"name": "mine", "title": "Mine", "projection": "erp", "fov_x_deg": 360.0}
    (home / "mine.yaml").write_text(yaml.safe_dump({**tree, "splits": {"train": {"images": ["{id}.png"]}}}))
    for arguments in (
        ("~/mine.yaml", "--path", "~/data", "--out", "~/r.parquet"),
        ("../mine.yaml", "--path=~/data", "--out=~/r.parquet"),
    ):
        status, text = panoda("data", "check", *arguments)
        assert status == 0 and "nothing wrong" in text, text
        (home / "r.parquet").unlink()
    assert not os.path.lexists("~")
    status, text = panoda("predict", "~/data", "--checkpoint=~/no.safetensors", "--out=~/out")
    assert status == 1 and f"{home}/no.safetensors" in text
    assert os.listdir() == []
