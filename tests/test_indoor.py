"""Stanford2D3D and Structured3D: layouts, encodings and quirks."""

from __future__ import annotations

import json
import logging

import miniature
import numpy as np
import pandas as pd
import pytest
from miniature import SIZE
from PIL import Image
from test_declared import check_labels, run

from panoda.config import Stanford2D3DDataset, Structured3DDataset
from panoda.data.formats.dataset import list_items
from panoda.data.formats.stanford2d3d import class_ids, fold_areas
from panoda.labels import get_label_space, remap_table
from panoda.stages.download import download
from panoda.system.errors import DataError


def stanford(root, **more) -> Stanford2D3DDataset:
    options = {"kind": "stanford2d3d", "path": str(root), "variant": "panoramic"} | more
    return Stanford2D3DDataset.model_validate(options)


def structured(root, **more) -> Structured3DDataset:
    return Structured3DDataset.model_validate({"kind": "structured3d", "path": str(root)} | more)


# --- Stanford2D3D -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fold", "train", "val"),
    [
        (1, ["1", "2", "3", "4", "6"], ["5a", "5b"]),
        (2, ["1", "3", "5a", "5b", "6"], ["2", "4"]),
        (3, ["2", "4", "5a", "5b"], ["1", "3", "6"]),
    ],
)
def test_folds(tmp_path, fold, train, val):
    assert fold_areas(fold, "train") == tuple(f"area_{a}" for a in train)
    assert fold_areas(fold, "val") == tuple(f"area_{a}" for a in val)
    miniature.stanford2d3d(tmp_path / "data")
    dataset = stanford(tmp_path / "data", fold=fold)
    download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    items = list(list_items(dataset, tmp_path / "raw"))
    assert [i.group for i in items if i.split == "train"] == [f"area_{a}" for a in train]
    assert [i.group for i in items if i.split == "val"] == [f"area_{a}" for a in val]


@pytest.mark.parametrize("variant", ["pinhole", "panoramic"])
@pytest.mark.parametrize("space", ["indoor13", "indoor8"])
def test_stanford(tmp_path, variant, space):
    expected = miniature.stanford2d3d(tmp_path / "data")
    prepared = run(stanford(tmp_path / "data", variant=variant), tmp_path, label_space=space)
    for split in ("train", "val"):
        check_labels(prepared[split], expected, remap_table("indoor13", space))
        assert prepared[split].full_circle == (variant == "panoramic")
    if variant == "pinhole":  # from the pose files: areas 1, 2, 3, 4, 6 are numbers 0, 1, 2, 3, 6
        assert prepared["train"].index.fov_x_deg.round(6).tolist() == [50, 51, 52, 53, 56]


def test_stanford_polar_crop_and_unlabelled(tmp_path):
    expected = miniature.stanford2d3d(tmp_path / "data")
    dataset = stanford(
        tmp_path / "data",
        splits={"train": "train", "test": "val"},
        unlabelled=["train"],
        crop_top=0.125,
        crop_bottom=0.125,
    )
    prepared = run(dataset, tmp_path, label_space="indoor13", size=(48, 128))
    assert not prepared["train"].has_labels
    test = prepared["test"]
    assert (test.lat_top_deg, test.lat_bottom_deg) == (67.5, -67.5)
    np.testing.assert_array_equal(test[0]["label"].numpy(), expected[test.ids[0]][8:-8])


def test_stanford_indices_need_both_channels(tmp_path):
    miniature.stanford2d3d(tmp_path)
    ids = class_ids(tmp_path / "semantic_labels.json")
    names = get_label_space("indoor13").names
    assert len(ids) == 600 and ids[0] == 255
    assert [names[ids[i]] for i in (1, 2, 13, 14, 300)] == ["beam", "board", "window", "beam", "beam"]
    assert ids[1 * 256 + 44] == ids[300] != ids[44]


def test_stanford_index_past_the_end_is_reported(tmp_path):
    miniature.stanford2d3d(tmp_path / "data")
    path = next((tmp_path / "data/area_1/pano/semantic").iterdir())
    code = np.array(Image.open(path))
    code[30, :5] = (0, 200, 1)
    Image.fromarray(code).save(path)
    with pytest.raises(DataError, match=r"colours outside the space: 0,200,1 \(5 pixels\)"):
        run(stanford(tmp_path / "data"), tmp_path, label_space="indoor13")


def test_stanford_without_pose_file(tmp_path):
    miniature.stanford2d3d(tmp_path / "data")
    for path in (tmp_path / "data/area_1/data/pose").iterdir():
        path.unlink()
    dataset = stanford(tmp_path / "data", variant="pinhole", fov_x_deg=45.0)
    download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    assert [i.fov_x_deg for i in list_items(dataset, tmp_path / "raw") if i.group == "area_1"] == [45.0]


def test_stanford_errors(tmp_path):
    miniature.stanford2d3d(tmp_path / "data")
    root = tmp_path / "data"

    def fails(match: str, **more: object) -> None:
        with pytest.raises(DataError, match=match):
            download(role="source", dataset=stanford(root, **more), out=tmp_path / "raw", progress=False)
        assert not (tmp_path / "raw").exists()

    next((root / "area_3/pano/semantic").iterdir()).unlink()
    fails(r"area_3.*its label .*_semantic\.png is missing")
    next((root / "area_5a/data/pose").iterdir()).write_text('{"field_of_view_rads": 60}')
    fails("field_of_view_rads is 60.0, expected an angle", variant="pinhole")
    (root / "area_1/pano").rename(root / "area_1/elsewhere")
    fails(r"area_1.pano.rgb: no such folder; unpack area_1 there \(fold 1 needs it for split train\)")
    (root / "semantic_labels.json").write_text(json.dumps(["<UNK>", "lamp_1_office_1_area_1"]))
    fails("unknown classes lamp; expected beam")
    (root / "semantic_labels.json").write_text("{}")
    fails("expected a list of names")
    (root / "semantic_labels.json").unlink()
    fails("it says what the label colours mean")
    with pytest.raises(ValueError, match="for variant: panoramic"):
        stanford(root, variant="pinhole", crop_top=0.1)


# --- Structured3D -------------------------------------------------------------------------------------


def test_structured3d(tmp_path, caplog):
    expected = miniature.structured3d(tmp_path / "data")
    dataset = structured(tmp_path / "data", splits={"train": "train", "val": "val", "test": "test"})
    with caplog.at_level(logging.WARNING, logger="panoda"):
        prepared = run(dataset, tmp_path, label_space="indoor8")
    assert {split: part.ids for split, part in prepared.items()} == {
        "train": ["scene_00000/485142", "scene_02999/485142"],
        "val": ["scene_03000/485142"],
        "test": ["scene_03250/485142"],
    }
    for part in prepared.values():
        check_labels(part, expected, remap_table("nyu40", "indoor8"))
    skipped = pd.read_csv(tmp_path / "raw" / "skipped.csv")
    assert [path.split("/")[-1] for path in skipped["path"]] == [
        *("rgb_rawlight.png", "semantic.png", "semantic.png", "scene_01155"),
    ]
    assert [reason.split(" ")[0] for reason in skipped["reason"]] == ["broken", "broken", "missing", "the"]
    assert "skipped 4 rooms and scenes" in caplog.text


@pytest.mark.parametrize("light", ["coldlight", "warmlight"])
def test_structured3d_lights(tmp_path, light):
    miniature.structured3d(tmp_path / "data")
    dataset = structured(tmp_path / "data", light=light, splits={"val": "val"})
    prepared = run(dataset, tmp_path, label_space="nyu40")["val"]
    image, _ = miniature.structured3d_scene(3000, light)
    np.testing.assert_array_equal(prepared[0]["image"].permute(1, 2, 0).numpy(), image)
    assert prepared[0]["label"].shape == SIZE


def test_structured3d_errors(tmp_path):
    miniature.structured3d(tmp_path / "data")
    (tmp_path / "data/scene_03000").rename(tmp_path / "data/scene_03398")
    dataset = structured(tmp_path / "data")
    with pytest.raises(
        DataError, match=r"split val has no usable room: expected scene_03000 to scene_03249.*found 0"
    ):
        download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()
    (tmp_path / "data/Structured3D/scene_00000").mkdir(parents=True)
    with pytest.raises(DataError, match="is the same scene; keep one"):
        download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
