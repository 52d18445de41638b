"""Declared data sets: list, decode and preprocess every built-in one and one's own; every kind of mistake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import miniature
import numpy as np
import pandas as pd
import pytest
import yaml
from command_line import panoda
from miniature import SIZE, picture, save, values
from PIL import Image

from panoda.config import DeclaredDataset, DomainParams, PrepareParams
from panoda.data.formats.dataset import ADAPTERS, list_items, raw_label_space
from panoda.data.formats.declaration import Declaration, built_in, read_declaration
from panoda.data.formats.declared import files_of
from panoda.data.formats.encoding import encoding_of
from panoda.data.formats.scan import scan_split, unused_labels
from panoda.data.loading.prepared import PreparedSplit
from panoda.labels import remap_table
from panoda.report.words import DECLARED
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.system.context import RunContext
from panoda.system.errors import DataError

REAL = Path(os.environ.get("PANODA_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))


def run(dataset, tmp_path, *, label_space, size=SIZE):
    """Stages download and preprocess; returns the prepared splits by name."""
    domain = DomainParams(
        folder="source", dataset=dataset, prepare=PrepareParams(height=size[0], width=size[1])
    )
    download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    preprocess(
        role="source",
        raw=tmp_path / "raw",
        out=tmp_path / "prepared",
        domain=domain,
        label_space=label_space,
        context=RunContext(),
    )
    return {p.name: PreparedSplit(p) for p in (tmp_path / "prepared").iterdir() if p.is_dir()}


def check_labels(split: PreparedSplit, expected: dict[str, np.ndarray], table: np.ndarray) -> None:
    """Every prepared label is the expected one; raw and prepared sizes are the same."""
    assert len(split) and split.has_labels
    for name, sample in zip(split.ids, split, strict=True):
        np.testing.assert_array_equal(sample["label"].numpy(), table[expected[name]], err_msg=name)


def declared(name: str, root: Path, **more: object) -> DeclaredDataset:
    options = {"kind": "declared", "declaration": name, "path": str(root)} | more
    return DeclaredDataset.model_validate(options)


# --- the built-in declarations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "splits", "spaces", "counts"),
    [
        ("cityscapes", {"train": "train", "val": "val"}, ("cs19", "cs13"), {"train": 4, "val": 2}),
        ("densepass", {"train": "train", "test": "val"}, ("cs19", "cs13"), {"train": 4, "test": 4}),
        ("synpass", {"train": "train", "test": "test"}, ("synpass22", "cs13"), {"train": 2, "test": 2}),
        ("camvid", {"train": "train", "val": "val"}, ("camvid11", "cs13"), {"train": 2, "val": 2}),
        ("camvid32", {"train": "all", "val": "all"}, ("camvid11", "camvid11"), {"train": 2, "val": 2}),
    ],
)
def test_built_in(tmp_path, name, splits, spaces, counts):
    expected = getattr(miniature, name)(tmp_path / "data")
    prepared = run(declared(name, tmp_path / "data", splits=splits), tmp_path, label_space=spaces[1])
    assert {split: len(part) for split, part in prepared.items()} == counts
    declaration = read_declaration(name)
    for split, part in prepared.items():
        assert part.label_space == spaces[1] and part.full_circle == (declaration.projection == "erp")
        if not declaration.splits[splits[split]].labels:
            assert not part.has_labels
            continue
        own = {k.removeprefix(f"{splits[split]}:"): v for k, v in expected.items()}
        check_labels(part, own, remap_table(*spaces))


def test_every_so_many_images_are_held_out(tmp_path):
    for number in range(1, 7):
        for folder, value in (("images", 90), ("labels", 2)):
            (tmp_path / folder).mkdir(exist_ok=True)
            suffix = "jpg" if folder == "images" else "png"
            file = tmp_path / folder / f"{number}.{suffix}"
            Image.fromarray(np.full((32, 32), value, np.uint8)).convert(
                "RGB" if folder == "images" else "L"
            ).save(file)
    declaration = read_declaration("labelmefacade")
    parts = {}
    for name, every in (("train", {"leave_every": 3}), ("val", {"take_every": 3})):
        files = declaration.splits[name].model_copy(update={"take_every": None, "leave_every": None} | every)
        scan = scan_split(tmp_path, declaration.model_copy(update={"splits": {name: files}}), name)
        parts[name] = [item.id for item in scan.items]
        assert not scan.unpaired and unused_labels(tmp_path, files, scan) == []
    assert parts == {"train": ["1", "2", "4", "5"], "val": ["3", "6"]}


def test_camvid32_recordings_are_splits(tmp_path):
    expected = miniature.camvid32(tmp_path / "data")
    dataset = declared("camvid32", tmp_path / "data", splits={"train": "0001TP", "val": "Seq05VD"})
    prepared = run(dataset, tmp_path, label_space="cs13")
    assert {s: p.ids for s, p in prepared.items()} == {"train": ["006690"], "val": ["f00000"]}
    check_labels(prepared["val"], {"f00000": expected["Seq05VD/f00000"]}, remap_table("camvid11", "cs13"))


def test_ade20k_modes_sizes_and_suffixes(tmp_path):
    expected = miniature.ade20k(tmp_path / "data")
    dataset = declared("ade20k", tmp_path / "data", splits={"train": "train", "val": "val"})
    prepared = run(dataset, tmp_path, label_space="ade150")
    assert prepared["train"].ids == [f"ADE_train_{n:08d}" for n in (1, 2, 3, 4)]
    assert prepared["val"].index.raw_height.tolist() == [64, 64, 64, 128]
    table = remap_table("ade150", "ade150")
    for number in range(3):
        sample = prepared["train"][number]
        np.testing.assert_array_equal(
            sample["label"].numpy(), table[expected[prepared["train"].ids[number]]], err_msg=str(number)
        )
    # The fourth is stored on its side: its image must come out as its label lies.
    image, _ = miniature.ade20k_scene(4, "training")
    small = Image.fromarray(image).resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)
    found = prepared["train"][3]["image"].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - np.asarray(small).astype(int)).mean() < 6


def test_densepass_groups_and_geometry(tmp_path):
    miniature.densepass(tmp_path / "data")
    dataset = declared("densepass", tmp_path / "data", splits={"train": "train"}, groups=["Zurich"])
    download(role="target", dataset=dataset, out=tmp_path / "raw", progress=False)
    items = list(list_items(dataset, tmp_path / "raw"))
    assert [(i.id, i.group, i.label) for i in items] == [
        ("Zurich/1", "Zurich", None),
        ("Zurich/2", "Zurich", None),
    ]
    assert (items[0].fov_x_deg, items[0].lat_top_deg, items[0].lat_bottom_deg) == (360.0, 35.0, -35.0)
    assert raw_label_space(dataset, tmp_path / "raw") is None
    with pytest.raises(DataError, match="no group Oslo; it has Athens, Zurich"):
        again = dataset.model_copy(update={"groups": ["Oslo"]})
        download(role="target", dataset=again, out=tmp_path / "raw", progress=False)


def test_unlabelled_leaves_labels_out(tmp_path):
    miniature.synpass(tmp_path / "data")
    dataset = declared(
        "synpass", tmp_path / "data", splits={"train": "train", "test": "test"}, unlabelled=["train"]
    )
    prepared = run(dataset, tmp_path, label_space="cs13")
    assert not prepared["train"].has_labels and prepared["test"].has_labels
    assert "semantic/cloud/train" not in (tmp_path / "raw" / "files.csv").read_text()
    assert prepared["test"].index.group.tolist() == ["cloud", "rain"]


def test_cvrg_says_what_is_unknown(tmp_path):
    miniature.cvrg_pano(tmp_path / "data")
    dataset = declared("cvrg_pano", tmp_path / "data", splits={"train": "all", "test": "test"})
    prepared = run(dataset, tmp_path, label_space="cs13")
    assert prepared["train"].ids == ["test/a1", "train/a1"] and not prepared["train"].has_labels
    assert "not which id is which class" in read_declaration("cvrg_pano").manual


@pytest.mark.parametrize("name", built_in())
def test_built_in_declarations_are_whole(name):
    declaration = read_declaration(name)
    assert declaration.name == name and declaration.manual and declaration.citation and declaration.homepage
    if declaration.labels is not None:
        assert encoding_of(declaration.labels, name).table
    by_hand = [f for f in declaration.files if not (f.url or f.google_drive or f.cityscapes)]
    assert bool(by_hand) == (declaration.adapter is not None)
    assert set(built_in()) == {
        *("ade20k", "camvid", "camvid32", "cityscapes", "cvrg_pano", "densepass", "labelmefacade"),
        *("stanford2d3d", "structured3d", "synpass"),
    }
    assert name in ADAPTERS or name in DECLARED


def test_maps_of_the_declarations_value_by_value():
    def table(name: str) -> dict[int, int]:
        return dict(encoding_of(read_declaration(name).labels, name).table)

    cityscapes = table("cityscapes")
    assert [cityscapes[i] for i in range(-1, 34)] == [
        *(255, 255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8),
        *(9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18),
    ]
    assert table("synpass") == {0: 255} | {v: v - 1 for v in range(1, 23)}
    assert table("ade20k") == {0: 255} | {v: v - 1 for v in range(1, 151)}
    assert table("densepass") == {i: i for i in range(19)} | {255: 255}
    assert table("camvid") == {i: i for i in range(11)} | {11: 255, 255: 255}
    colours = {tuple(map(int, text.split(","))): new for text, new in miniature.CAMVID32.items()}
    assert table("camvid32") == {r * 65536 + g * 256 + b: new for (r, g, b), new in colours.items()}
    # Raw SynPASS ids to cs13 in one step, as published.
    raw = [255, 2, 4, 255, 11, 5, 0, 0, 1, 8, 12, 3, 7, 10, 255, 255, 255, 255, 6, 255, 255, 255, 9]
    to = remap_table("synpass22", "cs13")
    assert [int(to[table("synpass")[v]]) for v in range(23)] == raw


# --- one's own ---------------------------------------------------------------------------------------


def own(tmp_path: Path, change: Callable[[dict], object] = lambda tree: None) -> DeclaredDataset:
    """Two labelled images, their own label space, and a declaration that ``change`` may alter."""
    data = tmp_path / "data"
    for n in (1, 2):
        raw = values(n, [0, 10, 20])
        save(data / "shots" / f"{n}.JPG", picture(raw, n), format="JPEG", quality=95)
        save(data / "masks" / f"{n}.png", raw.astype(np.uint8))
    (tmp_path / "mine.yaml").write_text("names: [track, hill]\nto: {cs13: {track: road, hill: terrain}}\n")
    tree = {
        **{"name": "mine", "title": "My data", "projection": "pinhole", "fov_x_deg": 70.0},
        "labels": {"space": "mine.yaml", "ids": {10: 0, 20: 1}, "void": [0]},
        "splits": {"all": {"images": ["shots/{id}.jpg"], "labels": ["masks/{id}.png"]}},
    }
    change(tree)
    (tmp_path / "declaration.yaml").write_text(yaml.safe_dump(tree))
    return declared(str(tmp_path / "declaration.yaml"), data, splits={"train": "all"})


def test_own_data_set_with_its_own_space(tmp_path):
    prepared = run(own(tmp_path), tmp_path, label_space="cs13")["train"]
    assert prepared.ids == ["1", "2"] and prepared.index.group.tolist() == ["mine", "mine"]
    raw = values(1, [0, 10, 20])
    np.testing.assert_array_equal(
        prepared[0]["label"].numpy(), np.select([raw == 10, raw == 20], [0, 9], 255).astype(np.uint8)
    )


def test_own_space_can_be_trained_in(tmp_path):
    space = str(tmp_path / "mine.yaml")
    prepared = run(own(tmp_path), tmp_path, label_space=space)["train"]
    assert prepared.label_space == space and prepared.num_classes == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_list_file(tmp_path, kind):
    rows = pd.DataFrame(
        {
            "image": ["shots/2.JPG", "shots/1.JPG", "shots/1.JPG"],
            "label": ["masks/2.png", "masks/1.png", "masks/1.png"],
            "split": ["all", "all", "other"],
            "group": ["b", "a", "a"],
        }
    )
    dataset = own(tmp_path, lambda tree: tree.update(splits={"all": {"list_file": f"list.{kind}"}}))
    path = tmp_path / "data" / f"list.{kind}"
    rows.to_csv(path, index=False) if kind == "csv" else rows.to_parquet(path)
    prepared = run(dataset, tmp_path, label_space="cs13")["train"]
    assert prepared.ids == ["shots/2", "shots/1"] and prepared.index.group.tolist() == ["b", "a"]
    assert prepared.has_labels
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match=f"1 files changed since stage download .*list.{kind}"):
        list(list_items(dataset, tmp_path / "raw"))


def lists(text: str) -> Callable[[Path], Callable[[dict], object]]:
    def write(tmp_path: Path) -> Callable[[dict], object]:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "list.csv").write_text(text)
        return lambda tree: tree.update(splits={"all": {"list_file": "list.csv"}})

    return write


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("picture\nshots/1.JPG\n", "columns picture; expected image"),
        ("image\nshots/9.JPG\n", "names 'shots/9.JPG', but .* is no file"),
        ("image\n../x.png\n", "must be a path below"),
        ("image,label\nshots/1.JPG,masks/1.png\nshots/2.JPG,\n", "1 of 2 images have no label"),
        ("image,split\nshots/1.JPG,nothing\n", "split all of mine is empty"),
        (
            "image,label\nshots/1.JPG,masks/1.png\nshots/1.JPG,masks/2.png\n",
            "'shots/1.JPG' is in the list twice",
        ),
    ],
)
def test_list_file_errors(tmp_path, text, match):
    dataset = own(tmp_path, lists(text)(tmp_path))
    with pytest.raises(DataError, match=match):
        download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()


def test_missing_list_file(tmp_path):
    dataset = own(tmp_path, lambda tree: tree.update(splits={"all": {"list_file": "no.csv"}}))
    with pytest.raises(DataError, match=r"no\.csv: no such list file"):
        download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)


def splits(images: list[str], labels: list[str] | None = None) -> Callable[[dict], object]:
    chosen = {"images": images, "labels": ["masks/{id}.png"] if labels is None else labels}
    return lambda tree: tree.update(splits={"all": chosen})


def labels(**more: object) -> Callable[[dict], object]:
    return lambda tree: tree["labels"].update(more)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (splits(["shots/{id}.png"]), "split all of mine is empty: no image matches shots"),
        (splits(["shots/{id}.jpg"], ["masks/{id}_x.png"]), r"2 of 2 images have no label, such as .*1\.JPG"),
        (splits(["/shots/{id}.jpg"]), "expected a path relative"),
        (splits(["../{id}.jpg"]), "expected a path relative"),
        (splits(["shots/{name}.jpg"]), r"\{name\} is unknown"),
        (splits(["shots/{id.jpg"]), "a single brace is unknown"),
        (splits(["shots/{id}.jpg"], ["masks/*.png"]), r"\* is not possible"),
        (splits(["shots/{id}.jpg"], ["masks/one.png"]), "all images would have one label"),
        (splits(["shots/{id}.jpg"], ["{group}/{id}.png"]), r"has no \{group\}"),
        (labels(space="cs20"), "unknown label space 'cs20'"),
        (labels(space="nowhere.yaml"), "no such label space file"),
        (labels(ids={10: 7}), "10 becomes 7, but .* has classes 0..1"),
        (labels(ids={70000: 1}), "do not fit into 16 bits"),
        (labels(void=[10]), "which are classes as well"),
        (labels(palette={"1,2,3": 0}), "labels.palette needs encoding: palette"),
        (labels(encoding="palette"), "need encoding: ids"),
        (labels(encoding="palette", ids=None, void=[], palette={"1,2": 0}), 'expected "R,G,B"'),
        (labels(encoding="palette", ids=None, void=[], palette={"1,2,256": 0}), 'expected "R,G,B"'),
        (labels(encoding="palette", ids=None, void=[], space="ade150"), "two classes one colour"),
        (lambda tree: tree.update(colour="red"), "colour: unknown; expected name"),
    ],
)
def test_mistakes_are_named(tmp_path, change, match):
    dataset = own(tmp_path, change)
    with pytest.raises(DataError, match=match):
        download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()


def test_a_key_that_stands_twice(tmp_path):
    (tmp_path / "twice.yaml").write_text("name: a\ntitle: b\nname: c\n")
    with pytest.raises(ValueError, match=r"twice.yaml: not valid YAML \(name stands here twice"):
        read_declaration(str(tmp_path / "twice.yaml"))


def test_duplicate_ids(tmp_path):
    dataset = own(tmp_path, splits(["shots/{id}.jpg", "more/{id}.jpg"]))
    save(tmp_path / "data/more/2.jpg", picture(values(1, [1]), 1))
    with pytest.raises(DataError, match=r"shots/2\.JPG: split train already has id '2' \(more/2\.jpg\)"):
        download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)


def test_unknown_split_declaration_and_folder(tmp_path):
    dataset = own(tmp_path)
    for change, match in (
        ({"splits": {"train": "day"}}, "mine has no split 'day'; it has all"),
        ({"declaration": "nothing"}, "nothing: no such file, and no built-in"),
        ({"path": str(tmp_path / "no")}, "no such folder"),
        ({"path": "no", "declaration": "camvid"}, "`panoda data get camvid`"),
    ):
        with pytest.raises(DataError, match=match):
            changed = dataset.model_copy(update=change)
            download(role="source", dataset=changed, out=tmp_path / "raw", progress=False)
    dataset = declared("camvid", tmp_path, splits={"train": "train"}, unlabelled=["day"])
    with pytest.raises(ValueError, match="unlabelled names day, but the data set has train"):
        DomainParams(folder="source", dataset=dataset, prepare=PrepareParams(height=32, width=32))


def test_changed_files_are_noticed(tmp_path):
    dataset = own(tmp_path)
    download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    (tmp_path / "data/masks/1.png").unlink()
    with pytest.raises(DataError, match="1 files changed since stage download"):
        list(list_items(dataset, tmp_path / "raw"))


def test_wrong_ids_are_reported_when_preparing(tmp_path):
    dataset = own(tmp_path)
    raw = values(1, [0, 10, 20])
    raw[0, :3] = 30
    save(tmp_path / "data/masks/1.png", raw.astype(np.uint8))
    with pytest.raises(DataError, match=re.escape("30 (3 pixels); expected 0 10 20")):
        run(dataset, tmp_path, label_space="cs13")


def test_scan_for_checks(tmp_path):
    dataset = own(tmp_path)
    declaration = read_declaration(dataset.declaration)
    (tmp_path / "data/shots/3.JPG").write_bytes((tmp_path / "data/shots/1.JPG").read_bytes())
    save(tmp_path / "data/masks/9.png", values(1, [0]).astype(np.uint8))
    scan = scan_split(tmp_path / "data", declaration, "all")
    assert scan.unpaired == ["shots/3.JPG"] and [i.id for i in scan.items] == ["1", "2", "3"]
    assert unused_labels(tmp_path / "data", declaration.splits["all"], scan) == ["masks/9.png"]


def test_declarations_are_read_without_torch():
    code = (
        "import sys; from panoda.data.formats.declaration import read_declaration; read_declaration('camvid'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not (REAL / "camvid" / "val").is_dir(), reason="no real images on this machine")
def test_real_camvid(tmp_path):
    dataset = declared("camvid", REAL / "camvid", splits={"val": "val"})
    val = run(dataset, tmp_path, label_space="cs13", size=(90, 120))["val"]
    shares = val.class_pixels / val.class_pixels.sum()
    assert len(val) == 40 and shares[[0, 2, 10]].sum() > 0.6  # road, building and sky dominate a street
    assert shares[[3, 6, 9]].sum() == 0  # wall, traffic light and terrain do not exist in CamVid


def test_data_sets_that_code_reads_name_their_kind(tmp_path):
    dataset = declared("stanford2d3d", tmp_path, splits={"train": "area_1 panoramic"})
    with pytest.raises(DataError, match="write kind: stanford2d3d in params.yaml"):
        download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)


def test_groups_from_lists(tmp_path, caplog):
    """The images of SynPASS val by day and night, which lists of places tell apart."""
    folder = tmp_path / "data"
    miniature.synpass(folder)
    for kind, suffix in (("img", ".jpg"), ("semantic", "_trainID.png")):
        source = folder / kind / f"rain/val/MAP_1_point2/000000{suffix}"
        for place in ("MAP_1_point4", "MAP_1_point6"):
            (folder / kind / "rain/val" / place).mkdir()
            shutil.copy(source, folder / kind / "rain/val" / place)
    section = declared("synpass", folder, splits={"train": "train", "test": "val_light"})
    with pytest.raises(DataError, match=r"all_map_day_val\.txt.*told apart by these lists"):
        download(role="source", dataset=section, out=tmp_path / "raw", progress=False)
    lines = "MAP_1_point2\n\n.\\MAP_1_point4\\\r\nMAP_9\n"
    (folder / "all_map_day_val.txt").write_bytes(lines.encode("utf-8-sig"))
    (folder / "all_map_night_val.txt").write_bytes('"MAP_1_point4"'.encode("utf-16"))
    download(role="source", dataset=section, out=tmp_path / "raw", progress=False)
    assert f"names in all_map_day_val.txt that no image has (1): {folder}/MAP_9" in caplog.text
    items = [item for item in list_items(section, tmp_path / "raw") if item.split == "test"]
    assert {(item.id, item.group) for item in items} == {
        ("cloud/MAP_1_point2/000000", "day"),
        ("rain/MAP_1_point2/000000", "day"),
        ("rain/MAP_1_point4/000000", "day+night"),
        ("rain/MAP_1_point6/000000", "unlisted"),
    }
    assert "all_map_day_val.txt" in (tmp_path / "raw/files.csv").read_text()  # a change of it is seen


def test_the_users_files_of_a_section(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    miniature.camvid(tmp_path / "data")
    tree = yaml.safe_load(built_in()["camvid"].read_text())
    tree["labels"] = {"space": "port.yaml", "encoding": "ids", "ids": {0: 0, 1: 1}, "others": "ignore"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    splits = {"train": "train", "val": "val"}
    own = declared("own.yaml", Path("data"), splits=splits)
    assert files_of(own) == {"declaration": Path("own.yaml"), "declared_space": Path("port.yaml")}
    assert files_of(declared("camvid", Path("data"), splits=splits)) == {}
    with pytest.raises(DataError, match="nowhere.yaml: no such file"):
        files_of(declared("nowhere.yaml", Path("data"), splits=splits))
    facts = []
    for names in ("[quay, water]", "[water, quay]"):
        (tmp_path / "port.yaml").write_text(f"names: {names}\n")
        section = declared("~/own.yaml", Path("~/data"), splits=splits)
        download(role="source", dataset=section, out=Path("raw"), progress=False)
        facts.append((tmp_path / "raw/facts.json").read_text())
    assert facts[0] != facts[1], "stage preprocess sees the change"


def test_what_a_declaration_leaves_out_is_named_in_every_command(tmp_path, caplog):
    """A link is followed, and the check and the download name the same files."""
    dataset = own(tmp_path, splits(["shots/{id:path}.jpg"], ["masks/{id:path}.png"]))
    data = tmp_path / "data"
    for kind, suffix in (("shots", ".JPG"), ("masks", ".png")):
        (tmp_path / "elsewhere" / kind).mkdir(parents=True)
        shutil.copy(data / kind / f"1{suffix}", tmp_path / "elsewhere" / kind / f"9{suffix}")
        (data / kind / "north").symlink_to(tmp_path / "elsewhere" / kind)
    (data / "shots/3.jpeg").touch()
    (data / "shots/4.heic").touch()
    (data / "shots/gone.jpg").symlink_to("nowhere.jpg")
    download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    assert [item.id for item in list_items(dataset, tmp_path / "raw")] == ["1", "2", "north/9"]
    lines = sorted(caplog.messages)
    assert [line.rpartition(": ")[2] for line in lines] == [
        *(f"{data}/shots/4.heic", f"{data}/shots/3.jpeg"),
        f"{data}/shots/gone.jpg points to nowhere.jpg",
    ]
    status, text = panoda(
        "data", "check", dataset.declaration, "--path", str(data), "--out", str(tmp_path / "r")
    )
    assert all(line in text for line in lines) and status == 1  # 9.JPG is a copy of 1.JPG
    table = pd.read_parquet(tmp_path / "r")
    assert sorted(table[table.kind == "left out"].path) == ["shots/3.jpeg", "shots/4.heic", "shots/gone.jpg"]


def test_a_list_names_what_it_leaves_out(tmp_path, caplog):
    dataset = own(
        tmp_path, lists("image,label,split\nshots/1.JPG,masks/1.png,all\nshots/2.JPG,,All\n")(tmp_path)
    )
    download(role="source", dataset=dataset, out=tmp_path / "raw", progress=False)
    assert caplog.messages == [
        f"left out: images that no pattern or list names (2): {tmp_path}/data/masks/2.png, "
        f"{tmp_path}/data/shots/2.JPG"
    ]


def test_a_pinhole_camera_sees_less_than_half_of_the_world():
    tree = {"name": "x", "title": "x", "projection": "pinhole", "fov_x_deg": 200, "splits": {}}
    with pytest.raises(ValueError, match="fov_x_deg is 200; a pinhole camera sees less than 180 degrees"):
        Declaration.model_validate(tree)
    assert Declaration.model_validate({**tree, "projection": "erp"}).fov_x_deg == 200
