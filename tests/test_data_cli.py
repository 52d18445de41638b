"""`panoda data`: list without torch, get from a server or by hand, check with its exit status."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from data_project import panoda
from http_server import Served, serve
from PIL import Image

from panoda.config import PrepareParams, parse_params
from panoda.config.scenarios import load_scenario
from panoda.data.formats import declaration as declarations
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.system.context import RunContext

ROOT = Path(__file__).resolve().parents[1]
SIZE = (8, 16)


def archive(path: Path, *, labels: bool = True, bad: bool = False) -> bytes:
    """A zip with two pairs below set/; with ``bad``, an entry that would leave the folder."""
    import io

    with zipfile.ZipFile(path, "w") as out:
        for i in range(2):
            for name, shape, high in (("images", (*SIZE, 3), 256), ("labels", SIZE, 13)):
                pixels = np.random.default_rng(i).integers(0, high, size=shape, dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, format="png")
                if labels or name == "images":
                    out.writestr(f"set/{name}/{i}.png", file.getvalue())
        if bad:
            out.writestr("../evil.txt", "evil")
    return path.read_bytes()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with a folder of built-in declarations."""
    (tmp_path / "declarations").mkdir()
    monkeypatch.setattr(declarations, "BUILT_IN", tmp_path / "declarations")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "project"


def declare(project: Path, name: str, files: list[dict], **more: object) -> None:
    tree = {
        "name": name,
        "title": f"The {name} set",
        "projection": "pinhole",
        "fov_x_deg": 90.0,
        "size": list(SIZE),
        "labels": {"space": "cs13"},
        "splits": {
            "train": {"images": ["set/images/{id}.png"], "labels": ["set/labels/{id}.png"], "expected": 2}
        },
        "files": files,
        "licence": "free [for all]",
        "size_gb": 0.5,
        **more,
    }
    (declarations.BUILT_IN / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def test_get_from_a_server_then_check(project):
    with serve() as server:
        body = archive(project.parent / "a.zip", bad=True)
        server.files["a.zip"] = Served(body, cuts=[0])
        sha256 = hashlib.sha256(body).hexdigest()
        declare(
            project,
            "open",
            [{"name": "a.zip", "url": f"{server.url}/a.zip", "bytes": len(body), "sha256": sha256}],
        )
        status, text = panoda("get", "open")
        assert status == 0, text
        assert "kept out: '../evil.txt': leaves the folder" in text and "1 bad entries kept out" in text
        assert "next: panoda data check open" in text
        asked = len(server.requests)
        (project / "data/downloads/open/a.zip").unlink()  # unpacked: not needed any more
        status, text = panoda("get", "open")
        assert status == 0 and "was unpacked before" in text and len(server.requests) == asked
    status, text = panoda("check", "open", "--out", "report.parquet")
    assert status == 0 and "nothing wrong" in text, text
    table = pd.read_parquet("report.parquet")
    assert table[table["kind"] == "images"]["value"].tolist() == [2]
    assert not list(project.rglob("evil.txt"))


def test_check_fails_on_wrong_data_and_still_writes(project):
    folder = project / "elsewhere"
    with zipfile.ZipFile(project.parent / "a.zip", "w"):
        pass
    archive(project.parent / "a.zip", labels=False)
    with zipfile.ZipFile(project.parent / "a.zip") as packed:
        packed.extractall(folder)
    declare(project, "mine", [])
    file = str(declarations.BUILT_IN / "mine.yaml")
    status, text = panoda("check", file, "--path", str(folder), "--out", "report.parquet")
    assert status == 1 and "image without label" in text and "2 problems" in text
    assert (pd.read_parquet("report.parquet")["kind"] == "image without label").sum() == 2


def test_get_by_hand(project):
    note = "Apply at the page, wait for the mail."
    body = archive(project.parent / "a.zip")
    declare(
        project,
        "gated",
        [{"name": "a.zip", "md5": hashlib.md5(body).hexdigest()}, {"name": "b.zip"}],
        manual=note,
        homepage="https://example.org/form",
    )
    status, text = panoda("get", "gated")
    folder = Path("data/downloads/gated")
    assert status == 1 and note in text and "https://example.org/form" in text
    assert f"Put them into {folder}" in text and f"missing in {folder}: a.zip, b.zip" in text

    folder.mkdir(parents=True)
    (folder / "a.zip").write_bytes(body[:-1] + b"x")
    (folder / "b.zip").write_bytes(archive(project.parent / "b.zip"))
    status, text = panoda("get", "gated")
    assert status == 1 and "wrong md5" in text and "renamed to a.zip.bad" in text
    assert "b.zip: unpacked, 4 files" in text and (folder / "set/images/1.png").is_file()

    (folder / "a.zip").write_bytes(body)
    status, text = panoda("get", "gated")
    assert status == 0 and "a.zip: unpacked" in text and "b.zip: was unpacked before" in text
    assert note not in text


def test_get_without_files_says_what_to_do(project):
    declare(project, "loose", [], manual="Ask the authors.")
    status, text = panoda("get", "loose", "--path", "there")
    assert status == 1 and "Ask the authors." in text and "Put the unpacked data into there" in text
    archive(project.parent / "a.zip")
    with zipfile.ZipFile(project.parent / "a.zip") as packed:
        packed.extractall("there")
    status, text = panoda("get", "loose", "--path", "there")
    assert status == 0 and "next: panoda data check loose --path there" in text


def test_list(project):
    with serve() as server:
        server.files["a.zip"] = Served(archive(project.parent / "a.zip"))
        declare(project, "open", [{"name": "a.zip", "url": f"{server.url}/a.zip"}])
        declare(project, "drive", [{"name": "d.zip", "google_drive": "ID"}])
        declare(project, "city", [{"name": "c.zip", "cityscapes": True}])
        declare(project, "gated", [{"name": "g.zip"}], size_gb=None)
        panoda("get", "open")
    status, text = panoda("list")
    assert status == 0
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert list(rows) == ["city", "drive", "gated", "open"]
    assert "Cityscapes account" in rows["city"] and "Google Drive" in rows["drive"]
    assert "by form, then by hand" in rows["gated"]
    assert "open link" in rows["open"] and "yes" in rows["open"] and "0.5" in rows["open"]
    assert "free [for all]" in rows["open"] and "no " in rows["drive"]


@pytest.mark.parametrize("arguments", [["get"], ["check"]])
def test_unknown_name(project, arguments):
    declare(project, "open", [])
    status, text = panoda(*arguments, "nothing")
    assert status == 1 and "nothing: no such file, and no built-in data set of that name; known: open" in text


@pytest.mark.parametrize("target", ["/etc", "../up"])
def test_unpack_to_stays_in_the_folder(project, target):
    declare(project, "odd", [{"name": "a.zip", "unpack_to": target}])
    status, text = panoda("get", "odd")
    assert status == 1 and "must be a folder within that of the data set" in text


def test_starts_without_torch_or_downloaders():
    code = (
        "import sys; from typer.testing import CliRunner; from panoda.cli.app import app\n"
        "result = CliRunner().invoke(app, ['data', 'list']); assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'gdown', 'cityscapesscripts', 'mlflow', 'prefect'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_the_worked_example_of_the_page(project):
    size = (32, 48)
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    example = page.split("Then `/data/harbour/harbour.yaml` is\n\n```yaml\n")[1].split("```")[0]
    Path("harbour.yaml").write_text(example.replace("[1080, 1920]", str(list(size))), encoding="utf-8")
    for number, place in enumerate(("north", "south")):
        for folder in (f"photos/{place}", f"masks/{place}"):
            Path("harbour", folder).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"harbour/photos/{place}/0001.jpg")
        ids = np.random.default_rng(number).integers(0, 3, size=size, dtype=np.uint8)
        Image.fromarray(ids).save(f"harbour/masks/{place}/0001_mask.png")
    status, text = panoda("check", "harbour.yaml", "--path", "harbour")
    assert status == 0 and "nothing wrong" in text, text
    for panorama in ("R001", "R002"):
        Path("harbour/panoramas").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"harbour/panoramas/{panorama}.jpg")
    section = page.split("label_space: cs13            # or")[1].split("```")[0].split("\n", 1)[1]
    section = section.replace("/data/harbour/harbour.yaml", "harbour.yaml").replace(
        "/data/harbour", "harbour"
    )
    tree = load_scenario("real", folder=ROOT / "scenarios").model_dump(mode="json")
    tree |= yaml.safe_load(section)
    params = parse_params({**tree, "label_space": "cs13"})
    for role, domain in params.data.domains.items():
        download(role=role, dataset=domain.dataset, out=Path("raw", role), progress=False)
        small = domain.model_copy(update={"prepare": PrepareParams(height=32, width=32)})
        out, context = Path("prepared", role), RunContext()
        preprocess(
            role=role, raw=Path("raw", role), out=out, domain=small, label_space="cs13", context=context
        )
        assert {path.name for path in out.iterdir() if path.is_dir()} == set(domain.dataset.splits)
    Image.fromarray(ids + 3).save("harbour/masks/south/0001_mask.png")
    status, text = panoda("check", "harbour.yaml", "--path", "harbour")
    assert status == 1 and "outside the encoding" in text


def test_classes_with_their_ids(tmp_path):
    status, text = panoda("classes", "cs13")
    lines = text.splitlines()
    assert status == 0 and lines[0].split() == ["0", "road", "128,64,128"] and len(lines) == 13
    assert lines[12].split() == ["12", "car", "0,0,142"]
    assert "can be mapped to cs13" in panoda("classes", "synpass22")[1]
    assert "cs19  19 classes" in panoda("classes")[1]
    own = tmp_path / "port.yaml"
    own.write_text("names: [quay, water]\npalette: [[1, 2, 3], [4, 5, 6]]\nto: {cs13: {quay: road}}\n")
    assert panoda("classes", str(own))[1].split("\n")[:3] == [
        "  0  quay  1,2,3",
        "  1  water  4,5,6",
        "can be mapped to cs13",
    ]
    status, text = panoda("classes", "cs14")
    assert status == 1 and "unknown label space" in text
