"""The data sets' layouts, through the stages download and preprocess."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from raw_data import write_pair
from test_gpano import HALF, packet, save

from panoda.config import CityDataset, DomainParams, FolderDataset, PrepareParams
from panoda.data.formats.dataset import adapter, list_items
from panoda.data.loading.prepared import PreparedSplit
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.system.context import RunContext
from panoda.system.errors import DataError

REAL = Path(os.environ.get("PANODA_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no real images on this machine")


def run(dataset, tmp_path, *, height=64, width=128, label_space="cs13"):
    domain = DomainParams(folder="source", dataset=dataset, prepare=PrepareParams(height=height, width=width))
    download(role="target", dataset=dataset, out=tmp_path / "raw", progress=False)
    result = preprocess(
        role="target",
        raw=tmp_path / "raw",
        out=tmp_path / "prepared",
        domain=domain,
        label_space=label_space,
        context=RunContext(),
    )
    return result, {p.name: PreparedSplit(p) for p in (tmp_path / "prepared").iterdir() if p.is_dir()}


# --- folder ----------------------------------------------------------------------------------------


def panoramas(tmp_path: Path) -> Path:
    root = tmp_path / "panoramas"
    for name, size in (("a", (64, 128)), ("b", (70, 160)), ("sub/a", (100, 200))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image, _ = write_pair(tmp_path / "x", "p", size=size)
        Image.open(image).save(root / f"{name}.JPG", format="JPEG")
    (root / "notes.txt").write_text("x")
    (root / "._a.jpg").write_text("x")
    return root


def test_folder(tmp_path):
    dataset = FolderDataset(
        kind="folder",
        path=str(panoramas(tmp_path)),
        splits={"train": ["**/*"], "test": ["sub/*"]},
        crop_bottom=0.25,
        ignore_bottom=0.5,
    )
    result, splits = run(dataset, tmp_path)
    assert result.items() >= {"images/train": 3.0, "images/test": 1.0}.items()
    train = splits["train"]
    assert train.ids == ["a", "b", "sub/a"] and train.full_circle and not train.has_labels
    assert train.index.raw_width.tolist() == [128, 160, 200]
    assert (train.lat_top_deg, train.lat_bottom_deg) == (90.0, -45.0)
    assert train[2]["valid"][:32].all() and not train[2]["valid"][32:].any()


def test_download_names_what_is_no_full_circle(tmp_path, capsys):
    folder = tmp_path / "panos"
    save(folder / "whole.jpg", 256, 512)
    save(folder / "half.jpg", 192, 512, xmp=packet(HALF))
    save(folder / "photo.jpg", 300, 400)
    dataset = FolderDataset(kind="folder", path=str(folder), splits={"train": ["*"], "test": ["*"]})
    download(role="target", dataset=dataset, out=tmp_path / "raw", progress=False)
    said = capsys.readouterr().out
    assert "target: 2 of 3 images cannot be what the data set declares" in said
    assert "half.jpg: GPano says 180 degrees of the circle" in said and "whole.jpg" not in said
    assert "photo.jpg: 400 x 300 pixels (width x height) are at most 240 degrees wide" in said


def test_pointer_follows_the_folder(tmp_path, monkeypatch):
    root = panoramas(tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = FolderDataset(kind="folder", path=str(root))

    def pointer() -> pd.Series:
        download(role="target", dataset=dataset, out=tmp_path / "raw", progress=False)
        return pd.read_csv(tmp_path / "raw" / "files.csv", index_col="path").sha256

    first = pointer()
    assert json.loads((tmp_path / "raw" / "source.json").read_text()) == {"path": "panoramas"}
    assert sorted(set(first.index)) == list(first.index) and {"a.JPG", "sub/a.JPG"} < set(first.index)
    train = [i.image.name for i in list_items(dataset, tmp_path / "raw") if i.split == "train"]
    assert train == ["a.JPG", "b.JPG", "a.JPG"]
    assert pointer().equals(first)
    data = bytearray((root / "b.JPG").read_bytes())
    data[-5] ^= 1
    (root / "b.JPG").write_bytes(data)
    assert pointer()["b.JPG"] != first["b.JPG"]
    (root / "b.JPG").write_bytes(bytes(data) + b"x")
    with pytest.raises(
        DataError, match=r"1 files changed since stage download \(0 of them missing\).*b\.JPG"
    ):
        list(list_items(dataset, tmp_path / "raw"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"path": "nowhere"}, "nowhere: no such folder"),
        ({"splits": {"train": ["**/*"], "val": ["*.png"]}}, "split val is empty: no image matches"),
        ({"splits": {"train": ["**/*"], "val": ["a*"]}}, "in splits train and val"),
        ({"splits": {"train": ["/etc/*"]}}, "not a pattern relative to"),
        ({"crop_top": 0.6, "crop_bottom": 0.4}, "leave nothing"),
    ],
)
def test_folder_errors(tmp_path, changes, match):
    section = {"kind": "folder", "path": str(panoramas(tmp_path))} | changes
    with pytest.raises(ValueError, match=match):
        dataset = FolderDataset(**section)
        download(role="target", dataset=dataset, out=tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()


def test_preprocess_before_download(tmp_path):
    dataset = FolderDataset(kind="folder", path=str(tmp_path))
    with pytest.raises(DataError, match="run stage download first"):
        list(list_items(dataset, tmp_path / "raw"))
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"source\.json: cannot be read"):
        list(list_items(dataset, tmp_path / "raw"))


# --- city ------------------------------------------------------------------------------------------

CITY = {
    "kind": "city",
    "camera": {"projection": "erp", "height": 32, "width": 128, "lat_top_deg": 30, "lat_bottom_deg": -30},
    "looks": {"southern": None},
    "splits": {"train": {"images": 2, "seed": 1, "labels": False}, "test": {"images": 1, "seed": 9}},
}


def city_raw(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        folder = tmp_path / "raw" / split
        for i in range(count):
            image, label = write_pair(tmp_path / "x", f"{i:05d}", size=(32, 128))
            for part, source in (("images", image), ("labels", label)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                source.rename(folder / part / f"{i:05d}.png")
        (folder / "meta.csv").write_text("id,look\n" + "".join(f"{i:05d},southern\n" for i in range(count)))


def test_city(tmp_path):
    city_raw(tmp_path)
    dataset = CityDataset.model_validate(CITY)
    items = list(list_items(dataset, tmp_path / "raw"))
    assert [(i.split, i.id, i.group, i.label is None) for i in items] == [
        ("train", "00000", "southern", True),
        ("train", "00001", "southern", True),
        ("test", "00000", "southern", False),
    ]
    assert (items[0].projection, items[0].fov_x_deg, items[0].lat_top_deg) == ("erp", 360.0, 30.0)
    (tmp_path / "raw" / "test" / "meta.csv").write_text("id,look\n")
    with pytest.raises(DataError, match=r"meta\.csv: 0 images, expected 1"):
        list(list_items(dataset, tmp_path / "raw"))


def test_unknown_kind():
    with pytest.raises(ValueError, match="unknown data set kind 'kitti'; known: city, folder, declared"):
        adapter("kitti")


# --- real images -----------------------------------------------------------------------------------


@needs_real
def test_real_panoramas(tmp_path):
    dataset = FolderDataset(
        kind="folder", path=str(REAL / "panoramas"), crop_top=0.2, crop_bottom=0.2, splits={"test": ["*.jpg"]}
    )
    result, splits = run(dataset, tmp_path, height=64, width=256)
    photographs = list((REAL / "panoramas").glob("*.jpg"))
    assert photographs and result["images/test"] == len(photographs)
    assert sorted(splits["test"].index.raw_height) == sorted(Image.open(file).height for file in photographs)
    assert all(s["image"].float().std() > 10 for s in splits["test"])
