"""Counts against values worked out by hand and against NumPy over the prepared arrays."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_data import erp_item, pinhole_item, run_prepare, write_pair

from panoda.data.loading.prepared import PreparedSplit
from panoda.data.prepare.statistics import Counts, count, write_statistics
from panoda.labels import get_label_space

ROAD, SKY = 0, 10


def row(**changes) -> dict:
    return {"group": "g", "valid_rows": 4} | changes


def test_one_image_by_hand(tmp_path):
    image = np.zeros((3, 4, 2), np.uint8)
    image[0], image[1, :2], image[2, 3] = 255, 51, 7  # the last row lies in the ignore band
    label = np.array([[SKY, SKY], [SKY, ROAD], [ROAD, 255], [255, 255]], np.uint8)
    counts = count({"image": image, "label": label}, row(valid_rows=3))
    metrics = write_statistics(tmp_path, {"train": counts}, get_label_space("cs19"))
    assert metrics["images/train"] == metrics["groups/train"] == 1
    assert [metrics[f"image_mean/train/{c}"] for c in "rgb"] == pytest.approx([1, 4 * 51 / 255 / 6, 0])
    # Green: four pixels of 0.2, two of 0.
    assert [metrics[f"image_std/train/{c}"] for c in "rgb"] == pytest.approx([0, 0.2 * np.sqrt(2) / 3, 0])
    assert metrics["class_share/train/road"] == pytest.approx(2 / 5)
    assert metrics["class_share/train/sky"] == pytest.approx(3 / 5)
    assert metrics["class_share/train/car"] == 0 and metrics["unlabelled/train"] == pytest.approx(1 / 6)
    assert json.loads((tmp_path / "statistics.json").read_text()) == metrics


def test_a_data_set_against_numpy(tmp_path):
    items = [
        erp_item(
            *write_pair(tmp_path, f"{split}{n}", seed=n), split=split, group=f"g{n % 2}", ignore_bottom=0.25
        )
        for split, images in (("train", 5), ("val", 2))
        for n in range(images)
    ]
    run_prepare(items, tmp_path / "out")
    metrics = json.loads((tmp_path / "out/statistics.json").read_text())
    classes = pd.read_csv(tmp_path / "out/classes.csv").set_index(["split", "class"])
    for split in ("train", "val"):
        samples = list(PreparedSplit(tmp_path / "out" / split))
        pixels = np.stack([s["image"][:, s["valid"]].numpy() for s in samples]) / 255
        labels = np.stack([s["label"][s["valid"]].numpy() for s in samples])
        for c, channel in enumerate("rgb"):
            assert metrics[f"image_mean/{split}/{channel}"] == pytest.approx(pixels[:, c].mean(), abs=1e-12)
            assert metrics[f"image_std/{split}/{channel}"] == pytest.approx(pixels[:, c].std(), abs=1e-12)
        assert metrics[f"class_share/{split}/car"] == pytest.approx((labels == 13).mean())
        assert classes.loc[split, "car"].pixels == (labels == 13).sum()
        assert classes.loc[split, "car"].images == len(samples)
    groups = pd.read_csv(tmp_path / "out/groups.csv").to_numpy().tolist()
    assert groups == [["train", "g0", 3], ["train", "g1", 2], ["val", "g0", 1], ["val", "g1", 1]]


def test_an_unlabelled_split_has_no_classes(tmp_path):
    run_prepare([erp_item(write_pair(tmp_path, "a")[0], None)], tmp_path / "out", label_space_from=None)
    metrics = json.loads((tmp_path / "out/statistics.json").read_text())
    assert metrics["images/train"] == 1 and 0 < metrics["image_mean/train/g"] < 1
    assert not [key for key in metrics if key.startswith(("class_share", "unlabelled"))]
    assert not (tmp_path / "out/classes.csv").exists()


def test_nothing_but_void_is_no_division_by_zero(tmp_path):
    image, label = write_pair(tmp_path, "a")
    Image.new("L", (128, 64), 255).save(label)
    run_prepare([pinhole_item(image, label)], tmp_path / "out")
    metrics = json.loads((tmp_path / "out/statistics.json").read_text())
    assert metrics["unlabelled/train"] == 1
    assert not [key for key in metrics if key.startswith("class_share")]


def test_counts_survive_json():
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (3, 8, 4), dtype=np.uint8),
        "label": rng.integers(0, 19, (8, 4), dtype=np.uint8),
    }
    one = count(arrays, row(valid_rows=8))
    back = Counts.from_json(json.loads(json.dumps(one.to_json())))
    back.add(one)
    assert back.images == 2 and back.groups == {"g": 2}
    assert back.to_json()["labels"] == (2 * one.labels).tolist()
