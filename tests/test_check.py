"""The check: every kind of problem is found, named and counted; good data pass."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from rich.console import Console
from test_gpano import HALF, packet, save

from panoda.data.check import check as module
from panoda.data.check.check import CheckReport, check_dataset, check_survey
from panoda.data.check.report import EXAMPLES, show, write_parquet
from panoda.data.check.survey import take_survey
from panoda.system.errors import DataError

SIZE = (8, 16)
TREE = {
    "name": "mini",
    "title": "Miniature",
    "projection": "pinhole",
    "fov_x_deg": 49.0,
    "size": list(SIZE),
    "labels": {"space": "cs19", "ids": {7: 0, 8: 1, 26: 13}, "void": [-1, 0]},
    "splits": {
        "train": {
            "images": ["img/train/{group}/{id}_rgb.png"],
            "labels": ["gt/train/{group}/{id}_ids.png"],
            "expected": 3,
        },
        "test": {"images": ["img/test/{group}/{id}_rgb.png"], "expected": 1},
    },
}


def declare(tmp_path: Path, **changes: object) -> str:
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump({**TREE, **changes}, sort_keys=False), encoding="utf-8")
    return str(path)


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def label(path: Path, values: np.ndarray | int, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values, np.uint8), size).copy()).save(path)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Three labelled images and one without label; label i has i rows of class 8 below class 7."""
    folder = tmp_path / "data"
    for i in range(3):
        picture(folder / "img/train/bonn" / f"{i}_rgb.png", i)
        values = np.full(SIZE, 7)
        values[SIZE[0] - 1 - i :] = 8
        values[0] = 255 if i == 2 else 0  # 255: how 8 bits hold -1
        label(folder / "gt/train/bonn" / f"{i}_ids.png", values)
    picture(folder / "img/test/ulm" / "9_rgb.png", 9)
    return folder


def found(report: CheckReport) -> dict[str, list[str]]:
    """Kind -> names of the files."""
    kinds: dict[str, list[str]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.kind, []).append(Path(problem.path).name)
    return kinds


def detail(report: CheckReport, kind: str) -> str:
    [text] = [problem.detail for problem in report.problems if problem.kind == kind]
    return text


def test_good_data_pass_and_are_counted(tmp_path, good):
    report = check_dataset(declare(tmp_path), good)
    assert report.ok and not report.problems
    train, test = report.splits["train"], report.splits["test"]
    assert (train.images, train.labels, train.expected) == (3, 3, 3)
    assert (test.images, test.labels, test.expected) == (1, 0, 1)
    # Of 8 rows of 16: one is void, 1 + 2 + 3 are sidewalk, the others road.
    assert train.ignored == 3 * 16
    assert train.class_pixels.tolist() == [(24 - 3 - 6) * 16, 6 * 16, *[0] * 17]


def test_any_number_of_workers_gives_one_report(tmp_path, good):
    label(good / "gt/train/bonn/1_ids.png", 99)
    survey = take_survey(declare(tmp_path), good)
    one = check_survey(survey, workers=1)
    other = check_survey(survey, workers=3)
    assert other.problems == one.problems and len(one.problems) == 1
    for name, split in one.splits.items():
        assert other.splits[name].class_pixels.tolist() == split.class_pixels.tolist()
        assert other.splits[name].wrong == split.wrong


def test_counts_against_the_published(tmp_path, good):
    (good / "img/test/ulm/9_rgb.png").unlink()
    report = check_dataset(declare(tmp_path), good)
    assert found(report) == {module.COUNT: [""]}
    assert detail(report, module.COUNT) == "0 images, published are 1"
    assert report.problems[0].split == "test" and report.problems[0].value == 0


def test_unpaired_files(tmp_path, good):
    (good / "gt/train/bonn/0_ids.png").rename(good / "gt/train/bonn/7_ids.png")
    report = check_dataset(declare(tmp_path), good)
    assert found(report) == {module.NO_LABEL: ["0_rgb.png"], module.NO_IMAGE: ["7_ids.png"]}
    assert report.splits["train"].labels == 2


def test_duplicates(tmp_path, good):
    (good / "img/test/ulm/9_rgb.png").write_bytes((good / "img/train/bonn/1_rgb.png").read_bytes())
    (good / "gt/train/bonn/2_ids.png").write_bytes((good / "gt/train/bonn/0_ids.png").read_bytes())
    report = check_dataset(declare(tmp_path), good)
    assert found(report) == {module.SAME_LABEL: ["2_ids.png"], module.SAME_IMAGE: ["9_rgb.png"]}
    assert detail(report, module.SAME_IMAGE).endswith("bonn/1_rgb.png (split train)")


def test_labels_of_one_value_are_no_copies(tmp_path, good):
    for i in range(3):
        label(good / f"gt/train/bonn/{i}_ids.png", 7)
    assert check_dataset(declare(tmp_path), good).ok


def test_panoramas_that_are_no_full_circle(tmp_path):
    for name, width, xmp in (("a", 128, b""), ("b", 128, packet(HALF)), ("c", 96, b"")):
        save(tmp_path / "data" / f"{name}.jpg", 48 if xmp else 64, width, xmp=xmp)
    splits = {"all": {"images": ["{id}.jpg"]}}
    tree = {"projection": "erp", "fov_x_deg": 360.0, "size": None, "labels": None, "splits": splits}
    report = check_dataset(declare(tmp_path, **tree), tmp_path / "data")
    assert found(report) == {module.GEOMETRY: ["b.jpg", "c.jpg"]}
    assert "GPano says 180 degrees" in report.problems[0].detail


def test_unreadable_files(tmp_path, good):
    image, broken = good / "img/train/bonn/0_rgb.png", good / "gt/train/bonn/1_ids.png"
    image.write_bytes(image.read_bytes()[:100])
    broken.write_text("no picture")
    report = check_dataset(declare(tmp_path), good)
    assert found(report) == {module.UNREADABLE_IMAGE: ["0_rgb.png"], module.UNREADABLE_LABEL: ["1_ids.png"]}
    assert "not a readable image" in detail(report, module.UNREADABLE_IMAGE)
    assert report.splits["train"].images == 3 and report.splits["train"].labels == 2


def test_wrong_sizes(tmp_path, good):
    picture(good / "img/train/bonn/0_rgb.png", 5, (16, 16))
    label(good / "gt/train/bonn/1_ids.png", 7, (4, 16))
    report = check_dataset(declare(tmp_path), good)
    assert found(report) == {module.IMAGE_SIZE: ["0_rgb.png"], module.LABEL_SIZE: ["0_ids.png", "1_ids.png"]}
    assert detail(report, module.IMAGE_SIZE) == "16 x 16 (height x width), published 8 x 16 (height x width)"
    assert check_dataset(declare(tmp_path, size=None), good).counts() == {module.LABEL_SIZE: 2}


def test_values_outside_the_encoding(tmp_path, good):
    values = np.full(SIZE, 7)
    values[0, :5], values[1, :3] = 9, 200
    label(good / "gt/train/bonn/0_ids.png", values)
    values[2, :2] = 9
    label(good / "gt/train/bonn/1_ids.png", values)
    report = check_dataset(declare(tmp_path), good)
    assert found(report) == {module.VALUES: ["0_ids.png", "1_ids.png"]}
    assert report.problems[0].detail == "outside the encoding: 9 (5 pixels), 200 (3 pixels)"
    assert [problem.value for problem in report.problems] == [8, 10]
    assert report.splits["train"].wrong == {"9": (12, 2), "200": (6, 2)}
    ignoring = declare(tmp_path, labels={**TREE["labels"], "others": "ignore"})  # type: ignore[dict-item]
    report = check_dataset(ignoring, good)
    assert report.ok and report.splits["train"].wrong == {"9": (12, 2), "200": (6, 2)}


def test_list_file(tmp_path, good):
    rows = [f"img/train/bonn/{i}_rgb.png,gt/train/bonn/{i}_ids.png,train" for i in range(3)]
    rows += ["img/test/ulm/9_rgb.png,,test", "img/test/ulm/10_rgb.png,,test"]
    (good / "list.csv").write_text("\n".join(["image,label,split", *rows]) + "\n")
    listed = {name: {"list_file": "list.csv"} for name in ("train", "test")}
    report = check_dataset(declare(tmp_path, splits=listed), good)
    assert found(report) == {module.UNREADABLE_IMAGE: ["10_rgb.png"]}
    assert (report.splits["train"].labels, report.splits["test"].images) == (3, 2)
    (good / "list.csv").write_text("picture\na.png\n")
    with pytest.raises(DataError, match="columns picture; expected image and"):
        check_dataset(declare(tmp_path, splits=listed), good)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder; `panoda data get .*mini.yaml`"):
        check_dataset(declare(tmp_path), tmp_path / "none")


def test_same_id_twice(tmp_path, good):
    picture(good / "img/train/bonn/0_rgb.PNG", 77)
    report = check_dataset(declare(tmp_path), good)
    # The suffix in capitals belongs to the pattern, too: both images are "0" and share a label.
    assert found(report)[module.SHARED_ID] == ["0_rgb.png"]


def test_overlapping_splits_are_read_once(tmp_path, good):
    splits = {**TREE["splits"], "first": {**TREE["splits"]["train"], "expected": None}}  # type: ignore[index, dict-item]
    splits["first"]["images"] = ["img/train/{group}/{id}_rgb.png"]
    splits["first"]["labels"] = ["gt/train/{group}/{id}_ids.png"]
    label(good / "gt/train/bonn/0_ids.png", 99)
    label(good / "gt/train/bonn/5_ids.png", 7)
    report = check_dataset(declare(tmp_path, splits=splits), good)
    assert found(report) == {module.VALUES: ["0_ids.png"], module.NO_IMAGE: ["5_ids.png"]}
    one, two = report.splits["train"], report.splits["first"]
    assert one.wrong == two.wrong == {"99": (SIZE[0] * SIZE[1], 1)}
    assert one.class_pixels.tolist() == two.class_pixels.tolist() and one.ignored == two.ignored == 32


def test_an_empty_split_is_wrong_without_a_published_number(tmp_path, good):
    splits = {**TREE["splits"], "val": {"images": ["img/val/{id}.png"]}}  # type: ignore[dict-item]
    report = check_dataset(declare(tmp_path, splits=splits), good)
    assert [(p.kind, p.split, p.detail) for p in report.problems] == [(module.COUNT, "val", "no images")]


# --- label values --------------------------------------------------------------------------------------


def count(tmp_path: Path, save: Callable[[Path], object], **labels: object) -> tuple[dict, int, dict]:
    """Classes, ignored pixels and wrong values of one label."""
    folder = tmp_path / "one"
    folder.mkdir(exist_ok=True)
    save(folder / "l.png")
    with Image.open(folder / "l.png") as image:
        picture(folder / "i.png", 1, (image.height, image.width))
    (folder / "list.csv").write_text("image,label\ni.png,l.png\n")
    splits = {"train": {"list_file": "list.csv"}}
    path = declare(tmp_path, labels={"space": "cs13", **labels}, splits=splits, size=None)
    split = check_dataset(path, folder).splits["train"]
    classes = {i: n for i, n in enumerate(split.class_pixels.tolist()) if n}
    return classes, split.ignored, {value: pixels for value, (pixels, _) in split.wrong.items()}


def test_counts_of_16_bit_and_palette_files(tmp_path):
    wide = np.array([[1000, 1000, 2], [65535, 0, 300]], np.uint16)
    ids = {1000: 5, 2: 1, 300: 1, -1: 255}
    assert count(tmp_path, Image.fromarray(wide).save, ids=ids) == ({1: 2, 5: 2}, 1, {"0": 1})
    indexed = Image.fromarray(np.array([[0, 1, 1, 255]], np.uint8)).convert("P")
    indexed.putdata([0, 1, 1, 255])
    assert count(tmp_path, indexed.save) == ({0: 1, 1: 2}, 1, {})


def test_counts_of_colours(tmp_path):
    colours = np.array([[(128, 64, 128), (128, 64, 128), (0, 0, 142), (1, 2, 3)]], np.uint8)
    save = Image.fromarray(colours).save
    assert count(tmp_path, save, encoding="palette") == ({0: 2, 12: 1}, 0, {"1,2,3": 1})
    own = {"128, 64,128": 3, "1,2,3": 255}
    assert count(tmp_path, save, encoding="palette", palette=own) == ({3: 2}, 1, {"0,0,142": 1})


def test_a_label_space_in_a_file_beside_the_declaration(tmp_path):
    (tmp_path / "port.yaml").write_text("names: [quay, water]\n")
    save = Image.fromarray(np.array([[0, 1, 1, 255, 7]], np.uint8)).save
    assert count(tmp_path, save, space="port.yaml") == ({0: 1, 1: 2}, 1, {"7": 1})


def test_wrong_encodings_are_refused(tmp_path, good):
    with pytest.raises(DataError, match=r"4 becomes 13, but cs13 has classes 0\.\.12"):
        check_dataset(declare(tmp_path, labels={"space": "cs13", "ids": {4: 13}}), good)
    with pytest.raises(DataError, match="labels.space: unknown label space"):
        check_dataset(declare(tmp_path, labels={"space": "nothing"}), good)


# --- what is shown and written -------------------------------------------------------------------------


def test_table_shows_ten_examples_and_parquet_all(tmp_path, good):
    for i in range(EXAMPLES + 3):
        (good / "img/train/bonn" / f"x[{i:02d}]_rgb.png").write_text(f"no picture {i}")
        label(good / "gt/train/bonn" / f"x[{i:02d}]_ids.png", 7)
    report = check_dataset(declare(tmp_path), good)
    text = io.StringIO()
    show(report, Console(file=text, width=200))
    shown = text.getvalue()
    assert "x[09]_rgb.png" in shown and "x[10]_rgb.png" not in shown and "and 3 more" in shown
    assert "16 images, published are 3" in shown and "14 problems" in shown
    assert "sidewalk" in shown

    write_parquet(report, tmp_path / "out" / "report.parquet")
    table = pd.read_parquet(tmp_path / "out" / "report.parquet")
    assert (table["kind"] == module.UNREADABLE_IMAGE).sum() == EXAMPLES + 3
    images = table[(table["kind"] == "images") & (table["split"] == "train")].iloc[0]
    assert (images["value"], images["expected"]) == (16, 3)
    classes = table[table["kind"] == "class"].set_index("name")
    assert classes["share"].sum() == pytest.approx(1)
    road = int((24 - 3 - 6) * 16 + 13 * SIZE[0] * SIZE[1])
    assert classes.loc["road", "value"] == road
    assert classes.loc["road", "share"] == pytest.approx(road / (road + 6 * 16))
