"""Suspicious labels are named, ordinary ones are not: in check, preprocess and pretrain."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_project import panoda
from PIL import Image

from panoda.config import DomainParams, ModelParams
from panoda.data.formats.dataset import Encoding
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.prepare.plausible import doubts, known_ids
from panoda.methods.supervised import SupervisedParams
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.stages.pretrain import pretrain
from panoda.system.context import RunContext
from panoda.system.errors import DataError

PARAMS = SupervisedParams.model_validate({"iterations": 1, "batch_size": 1, "optim": {"lr": 1e-3}})
NAMES = ("road", "car", "sky")


def found(pixels: list[int], ignored: int = 0, images: int = 200, **more: object) -> list[str]:
    options = {"possible": {0, 1, 2}, "in_part": False} | more
    return doubts(np.array(pixels), ignored, images, names=NAMES, **options)  # type: ignore[arg-type]


def test_ordinary_labels_pass():
    assert found([50, 40, 10], 30) == []
    assert found([90, 10, 0], possible={0, 1}) == []  # a class that the data set cannot have
    assert found([90, 10, 0], missing=False) == []
    assert found([50, 40, 10], 150, in_part=True) == []  # classes are left out on purpose
    assert found([0, 7, 0], possible={1}) == []
    few = dict.fromkeys(range(19), 1) | {17: 0, 18: 0}
    names = tuple(map(str, range(19)))
    assert doubts(np.array([*few.values()]), 0, 8, names=names, possible=range(19), in_part=False) == []


def test_what_is_named():
    [one] = found([60, 0, 0], 15)
    assert "every labelled pixel is 'road'" in one and "ids: {0: 0, 255: 1}" in one
    assert found([90, 10, 0]) == ["never occur in the labels of 200 images: sky; check the ids or colours"]
    assert found([90, 10, 0], images=3) != []
    [share] = found([50, 40, 10], 60)
    assert share.startswith("38 % of the pixels are ignored")


def test_known_ids():
    assert known_ids(None, 3) == {0, 1, 2}
    assert known_ids(Encoding(kind="ids", table=((4, 0), (9, 2), (3, 255))), 3) == {0, 2}


# --- masks of 0 and 255 --------------------------------------------------------------------------------


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Four images with masks in which 255 is a class for whoever drew them, 40 % of the pixels."""
    image = np.random.default_rng(0).integers(0, 256, (4, 64, 100, 3), dtype=np.uint8)
    for n in range(4):
        mask = np.zeros((64, 100), np.uint8)
        mask[:, n : n + 40] = 255
        for kind, array in (("img", image[n]), ("lab", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{n}.png")
    (tmp_path / "space.yaml").write_text("names: [floor, person]\n")
    declare(tmp_path, {"space": "space.yaml"})
    return tmp_path


def declare(folder: Path, labels: dict) -> None:
    split = {"images": ["img/{id}.png"], "labels": ["lab/{id}.png"]}
    tree = {"name": "masks", "title": "Masks", "projection": "pinhole", "fov_x_deg": 60, "labels": labels}
    text = yaml.safe_dump(tree | {"splits": {"train": split, "val": split}})
    (folder / "masks.yaml").write_text(text)


def prepared(folder: Path) -> Path:
    dataset = {"kind": "declared", "declaration": str(folder / "masks.yaml"), "path": str(folder)}
    dataset |= {"splits": {"train": "train", "val": "val"}}
    sizes = {"height": 64, "width": 96}
    domain = DomainParams.model_validate({"folder": "source", "dataset": dataset, "prepare": sizes})
    raw, out = folder / "raw", folder / "prepared"
    space = str(folder / "space.yaml")
    download(role="source", dataset=domain.dataset, out=raw, progress=False)
    preprocess(role="source", raw=raw, out=out, domain=domain, label_space=space, context=RunContext())
    return out


def test_check_names_them(masks, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, text = panoda("check", str(masks / "masks.yaml"), "--path", str(masks))
    assert status == 0 and "suspicious: every labelled pixel is 'floor'" in text
    assert "suspicious: train: 40 % of the pixels are ignored" in text
    declare(masks, {"space": "space.yaml", "ids": {0: 0, 255: 1}})
    status, text = panoda("check", str(masks / "masks.yaml"), "--path", str(masks))
    assert status == 0 and "suspicious" not in text


def test_preprocess_names_them_and_pretrain_refuses_them(masks, caplog):
    out = prepared(masks)
    assert "source train: every labelled pixel is 'floor'" in caplog.text
    assert "source val: 40 % of the pixels are ignored" in caplog.text
    assert len(PreparedSplit(out / "train").doubts) == 2
    caplog.clear()
    options = {"model": ModelParams(encoder="trans4pass_nano"), "params": PARAMS, "seed": 0}
    with pytest.raises(DataError, match=r"train: every labelled pixel is 'floor'.*panoda data check"):
        pretrain(
            source_train=out / "train",
            source_val=out / "val",
            out=masks / "result",
            context=RunContext(),
            **options,
        )
    assert "train: 40 % of the pixels are ignored" in caplog.text


def test_masks_with_ids_are_silent(masks, caplog):
    declare(masks, {"space": "space.yaml", "ids": {0: 0, 255: 1}})
    out = prepared(masks)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "train" in r.getMessage()]
    assert PreparedSplit(out / "train").doubts == [] and (PreparedSplit(out / "train").class_pixels > 0).all()
