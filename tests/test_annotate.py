"""Predictions to CVAT and Label Studio and back: pixel by pixel where nothing was changed, in place where it was."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from panoda.annotation.corrected import SPLIT, import_task
from panoda.annotation.export import export_task
from panoda.annotation.rle import decode, encode
from panoda.annotation.task import Task, read_task
from panoda.cli.app import main
from panoda.config import DomainParams
from panoda.config.scenarios import load_scenario
from panoda.data.formats.declaration import read_declaration
from panoda.data.loading.prepared import PreparedSplit
from panoda.deployment.predict import predict_files
from panoda.deployment.records import MANIFEST
from panoda.deployment.view import Geometry
from panoda.geometry.area import tilt
from panoda.geometry.pinhole import rays_to_pinhole
from panoda.geometry.views import Views
from panoda.labels import get_label_space, remap_table
from panoda.models import create_model
from panoda.models.core.checkpoint import make_card, save_model
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.system.context import RunContext
from panoda.system.errors import DataError

SPACE = get_label_space("cs13")
TOOLS = ("cvat", "label-studio")
HEIGHT, WIDTH = 96, 192


# --- run-length encoding -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 70), (300, 200)])
def test_masks_come_back(size) -> None:
    random = np.random.default_rng(0)
    for mask in (random.random(size) > 0.5, np.zeros(size, bool), np.ones(size, bool), np.tri(*size) > 0):
        assert np.array_equal(decode(encode(mask), *size), mask)


def test_the_bytes_are_those_of_label_studio() -> None:
    """How an annotation of 3332 x 2527 pixels begins that Label Studio exported (a public data set)."""
    assert encode(np.zeros((2527, 3332), bool))[:22] == [
        *(2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255)
    ]


def test_values_one_by_one_and_half_transparent_edges() -> None:
    """Two pixels as a browser writes them: four values one by one (alpha 127), then four times 200."""
    values = "".join(f"{value:08b}" for value in (9, 9, 9, 127))
    text = f"{8:032b}" + "00111" + "0010001101111111" + f"000011{values}" + f"100011{200:08b}"
    data = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    assert decode(list(data), 1, 2).tolist() == [[False, True]]


def test_masks_that_are_none() -> None:
    whole = encode(np.tri(8) > 0)
    for data, message in (
        (whole[:-3], "cut off"),
        ([], "cut off"),
        ([300], "no bytes of a mask"),
        (["a"], "no bytes of a mask"),
        ([*whole[:4], 0, *whole[5:]], "values of 1 bits"),
        (encode(np.tri(9) > 0), "a mask of 81 pixels, expected 8 x 8"),
    ):
        with pytest.raises(DataError, match=message):
            decode(data, 8, 8)


# --- what the tools do, in miniature ----------------------------------------------------------------------


def blocks(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    grid = np.random.default_rng(seed).integers(0, 13, (-(-height // 8), -(-width // 8)))
    return grid.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


def photo(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), dtype=np.uint8)
    small[:, -2:] = small[:, :1]
    Image.fromarray(small).resize(size[::-1]).save(path, **options)
    return path


@pytest.fixture
def labelled(tmp_path, checkpoint) -> Path:
    """Predictions of two panoramas, with labels in blocks."""
    return predicted(tmp_path, checkpoint, Geometry("erp"))


def predicted(tmp_path: Path, checkpoint: Path, geometry: Geometry) -> Path:
    turned = Image.Exif()
    turned[0x0112] = 3
    files = [photo(tmp_path / "in/a.png", 1), photo(tmp_path / "in/b.c.JPG", 2, exif=turned)]
    result = predict_files(checkpoint, files, tmp_path / "labelled", height=32, geometry=geometry)
    for seed, label in enumerate(result.labels):
        image = Image.open(label).copy()
        image.putdata(blocks(seed).ravel().tolist())
        image.save(label)
    return tmp_path / "labelled"


def in_cvat(task: Path, edits: dict[str, np.ndarray], *, without: tuple[str, ...] = ()) -> Path:
    """Import annotations.zip into CVAT, put the edits in, export in CVAT's own colours."""
    out = task / "export.zip"
    colours = {name: (10 + 5 * k, 200 - 3 * k, k) for k, name in enumerate(SPACE.names)}
    colours["background"] = (0, 0, 0)
    with zipfile.ZipFile(task / "annotations.zip") as given, zipfile.ZipFile(out, "w") as result:
        lines = [line for line in given.read("labelmap.txt").decode().splitlines() if line[0] != "#"]
        theirs = {line.split(":")[0]: tuple(map(int, line.split(":")[1].split(","))) for line in lines}
        names = given.read("ImageSets/Segmentation/default.txt").decode().split()
        result.writestr("labelmap.txt", "".join(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in colours.items()))
        for name in names:
            shown, parts = (
                np.asarray(Image.open(io.BytesIO(given.read(f"{folder}/{name}.png"))))
                for folder in ("SegmentationClass", "SegmentationObject")
            )
            assert Image.open(next((task / "images").glob(f"{name}.*"))).size == shown.shape[1::-1]
            painted = np.zeros_like(shown)
            for part in np.unique(parts.reshape(-1, 3), axis=0):  # one mask of each
                if part.any():
                    mask = (parts == part).all(axis=2)
                    (colour,) = np.unique(shown[mask], axis=0)
                    label = next(n for n, c in theirs.items() if c == tuple(colour))
                    painted[mask] = colours[label]
            for k, mask in enumerate(edits.get(name, ())):
                painted[mask] = (0, 0, 0) if k == 255 else colours[SPACE.names[k]]
            if name not in without:
                stream = io.BytesIO()
                Image.fromarray(painted).save(stream, format="PNG")
                result.writestr(f"SegmentationClass/{name}.png", stream.getvalue())
    return out


def in_label_studio(task: Path, edits: dict[str, np.ndarray], *, without: tuple[str, ...] = ()) -> Path:
    """Import tasks.json into Label Studio, submit the predictions with new masks over them, export as JSON."""
    entries = json.loads((task / "tasks.json").read_text())
    interface = (task / "interface.xml").read_text()
    assert all(f'value="{name}"' in interface for name in SPACE.names)
    for entry in entries:
        name = entry["data"]["name"]
        assert entry["data"]["image"].startswith("/data/local-files/?d=task/images/")
        result = entry["predictions"][0]["result"]
        for k, mask in enumerate(edits.get(name, ())):
            if mask.any():
                one = json.loads(json.dumps(result[0]))
                one["value"] = {"format": "rle", "rle": encode(mask), "brushlabels": [SPACE.names[k]]}
                result.insert(0, one) if k % 2 else result.append(one)
        entry["annotations"] = [{"result": [], "was_cancelled": True}]
        if name not in without:
            entry["annotations"].append({"result": result, "was_cancelled": False})
    (task / "export.json").write_text(json.dumps(entries))
    return task / "export.json"


def edited(tool: str, task: Path, edits: dict[str, np.ndarray], **options) -> Path:
    return (in_cvat if tool == "cvat" else in_label_studio)(task, edits, **options)


def masks(shape: tuple[int, int], changes: dict[int, tuple[slice, slice]]) -> np.ndarray:
    found = np.zeros((13, *shape), bool)
    for k, where in changes.items():
        found[k][where] = True
    return found


def ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# --- there and back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("views", [None, Views(), Views(fov_deg=60, pitches=(-60, 0, 60))])
def test_what_nobody_changes_comes_back_pixel_by_pixel(tmp_path, labelled, tool, views) -> None:
    result = export_task(labelled, tmp_path / "task", tool=tool, views=views)
    assert result.failures == [] and read_task(tmp_path / "task") == result.task
    assert (views is None) == all(photo.tiles == () for photo in result.task.photographs)
    edited(tool, tmp_path / "task", {})
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    assert back.changed == {"a": 0.0, "b.c": 0.0} and back.failures == back.left_out == []
    for seed, name in enumerate(back.changed):
        assert np.array_equal(ids(tmp_path / f"corrected/labels/{name}.png"), blocks(seed))


@pytest.mark.parametrize("tool", TOOLS)
def test_whole_panoramas_change_where_they_were_changed(tmp_path, labelled, tool) -> None:
    export_task(labelled, tmp_path / "task", tool=tool)
    where = (slice(20, 50), slice(170, 192))
    edited(tool, tmp_path / "task", {"a": masks((HEIGHT, WIDTH), {3: where, 4: (slice(0, 5), slice(0, 9))})})
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    expected = blocks(0)
    expected[where], expected[:5, :9] = 3, 4
    assert np.array_equal(ids(tmp_path / "corrected/labels/a.png"), expected)
    assert back.changed == {"a": np.mean(expected != blocks(0)), "b.c": 0.0}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("level", [None, (20.0, -15.0)])
def test_tiles_change_the_panorama_where_they_lie(tmp_path, checkpoint, tool, level) -> None:
    geometry = Geometry("erp") if level is None else Geometry("erp", None, None, None, True, *level)
    labelled = predicted(tmp_path, checkpoint, geometry)
    task = export_task(labelled, tmp_path / "task", tool=tool, views=Views()).task
    tile = task.photographs[0].tiles[2]
    radius = np.hypot(*(np.indices((tile.side, tile.side)) + 0.5 - tile.side / 2 - 5))
    disc = masks((tile.side, tile.side), {})
    disc[7] = radius < tile.side / 4
    edited(tool, tmp_path / "task", {tile.name: disc})
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    label, before = ids(tmp_path / "corrected/labels/a.png"), blocks(0)
    assert back.changed["b.c"] == 0 < back.changed["a"]
    area = task.view(task.photographs[0]).area(HEIGHT, WIDTH)
    turn = torch.eye(3) if level is None else tilt(*map(math.radians, level))
    place = {"azimuth": math.radians(tile.azimuth_deg), "elevation": 0.0, "fov_x": math.radians(90)}
    x, y, inside = rays_to_pinhole(
        area.rays(HEIGHT, WIDTH) @ turn.T, height=tile.side, width=tile.side, **place
    )
    distance = np.hypot(x.numpy() - tile.side / 2 - 5, y.numpy() - tile.side / 2 - 5)
    distance = np.where(inside.numpy(), distance, np.inf)
    assert (
        label[distance < tile.side / 4 - 1] == 7
    ).mean() > 0.97  # pixels that were 7 already looked up others
    assert np.array_equal(label[distance > tile.side / 4 + 1], before[distance > tile.side / 4 + 1])
    assert set(np.unique(label[label != before])) == {7}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_change_in_one_of_overlapping_tiles_counts(tmp_path, labelled, tool) -> None:
    """The border of a tile belongs to its neighbour, which nobody touched; in two changed ones the nearer counts."""
    task = export_task(labelled, tmp_path / "task", tool=tool, views=Views()).task
    one, two = task.photographs[0].tiles[:2]  # 60 degrees apart, two looks to the right
    border = masks((one.side, one.side), {3: (slice(0, one.side), slice(one.side - 12, one.side))})
    whole = masks((one.side, one.side), {8: (slice(None), slice(None))})
    labels = []
    for number, edits in enumerate(({one.name: border}, {one.name: border, two.name: whole})):
        edited(tool, tmp_path / "task", edits)
        import_task(tmp_path / "task", tmp_path / f"corrected{number}")
        labels.append(ids(tmp_path / f"corrected{number}/labels/a.png"))
    row, column = HEIGHT // 2, WIDTH // 2 + round(43 / 360 * WIDTH)
    assert [label[row, column] for label in labels] == [3, 8]


def test_erased_pixels_are_unlabelled(tmp_path, labelled) -> None:
    export_task(labelled, tmp_path / "task", tool="label-studio")
    entries = json.loads((tmp_path / "task/tasks.json").read_text())
    for entry in entries:
        kept = [one for one in entry["predictions"][0]["result"] if one["value"]["brushlabels"] != ["sky"]]
        entry["annotations"] = [{"result": kept}]
    (tmp_path / "mine.json").write_text(json.dumps(entries))
    import_task(tmp_path / "task", tmp_path / "corrected", exported=tmp_path / "mine.json")
    label, before = ids(tmp_path / "corrected/labels/a.png"), blocks(0)
    sky = before == SPACE.index("sky")
    assert sky.any() and (label[sky] == 255).all() and np.array_equal(label[~sky], before[~sky])


# --- the data set ----------------------------------------------------------------------------------------


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["panoda", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0, *capsys.readouterr()


def test_the_result_is_a_source(tmp_path, labelled, monkeypatch, capsys) -> None:
    task, out = tmp_path / "task", tmp_path / "corrected"
    status, text, _ = run(
        monkeypatch, capsys, "annotate", "export", labelled, "--out", task, "--format", "cvat"
    )
    assert status == 0 and "2 pictures of 2 images" in text
    edited("cvat", task, {"a": masks((HEIGHT, WIDTH), {3: (slice(9), slice(9))})})
    status, text, _ = run(monkeypatch, capsys, "annotate", "import", task, "--out", out)
    assert (
        status == 0 and "a: 0." in text and f"panoda data check {out / 'dataset.yaml'} --path {out}" in text
    )
    status, text, _ = run(monkeypatch, capsys, "data", "check", out / "dataset.yaml", "--path", out)
    assert status == 0, text
    dataset = {
        "kind": "declared",
        "declaration": str(out / "dataset.yaml"),
        "path": str(out),
        "splits": {"train": "all", "val": "all"},
    }
    domain = DomainParams.model_validate(
        {
            "folder": "more_sources/corrected",
            "dataset": dataset,
            "prepare": {"height": HEIGHT, "width": WIDTH},
        }
    )
    download(role="corrected", dataset=domain.dataset, out=tmp_path / "raw", progress=False)
    preprocess(
        role="corrected",
        raw=tmp_path / "raw",
        out=tmp_path / "prepared",
        domain=domain,
        label_space="cs13",
        context=RunContext(),
    )
    split = PreparedSplit(tmp_path / "prepared/train")
    assert len(split) == len(PreparedSplit(tmp_path / "prepared/val")) == 2 and split.full_circle
    for number, name in enumerate(("a", "b.c")):
        assert np.array_equal(split[number]["label"].numpy(), ids(out / f"labels/{name}.png"))
    with Image.open(labelled / "overlays/b.c.jpg") as upright:
        image = split[1]["image"].permute(1, 2, 0).numpy().astype(int)
        expected = np.asarray(upright).astype(int)
    assert abs(image.mean(axis=2) - expected.mean(axis=2)).mean() < 60  # upright, not upside down


def test_the_lines_for_params_yaml(tmp_path) -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs/annotation.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("extends: city\n" + page.split("```yaml\n")[1].split("```")[0])
    shutil.copy(root / "scenarios/city.yaml", tmp_path)
    params = load_scenario("mine", folder=tmp_path)
    assert params.sources == {"source": 4.0, "corrected": 1.0}
    assert params.data.domains["corrected"].dataset.splits == {"train": SPLIT, "val": SPLIT}


def test_a_label_space_of_ones_own(tmp_path, checkpoint, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"class {k}" for k in range(13)]
    Path("port.yaml").write_text(yaml.safe_dump({"names": names, "palette": [[0, 0, 0]] * 13}))
    model = create_model("trans4pass_nano", num_classes=13)
    save_model(Path("m.safetensors"), model, make_card(model, label_space="port.yaml", stage="adapt", seed=0))
    predict_files(Path("m.safetensors"), [photo(tmp_path / "a.png", 0)], tmp_path / "labelled", height=32)
    export_task(tmp_path / "labelled", tmp_path / "task", tool="cvat")  # colours of its own: all are black
    (tmp_path / "task/annotations.zip").rename(tmp_path / "task/export.zip")
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    assert back.changed == {"a": 0.0}
    declaration = read_declaration(str(tmp_path / "corrected/dataset.yaml"))
    assert declaration.labels.space == "space.yaml"
    assert get_label_space(str(tmp_path / "corrected/space.yaml")).names == tuple(names)
    assert remap_table(str(tmp_path / "corrected/space.yaml"), "port.yaml")[:13].tolist() == list(range(13))


# --- what may be wrong ---------------------------------------------------------------------------------------


def test_only_what_was_chosen(tmp_path, labelled) -> None:
    rows = [f"1,{tmp_path / 'in/b.c.JPG'}", f"2,{tmp_path / 'in/gone.png'}", f",{tmp_path / 'in/a.png'}"]
    (tmp_path / "chosen.csv").write_text("\n".join(["rank,image", *rows]) + "\n")
    result = export_task(labelled, tmp_path / "task", tool="cvat", chosen=tmp_path / "chosen.csv")
    assert [photo.name for photo in result.task.photographs] == ["b.c"]
    assert result.failures == [f"{tmp_path / 'in/gone.png'}: chosen, but not predicted"]
    for text, message in (
        ("rank,image\n1,/no.png\n", "nothing that is chosen there was predicted"),
        ("a,b\n1,2\n", "not a table of"),
    ):
        (tmp_path / "chosen.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            export_task(labelled, tmp_path / "no", tool="cvat", chosen=tmp_path / "chosen.csv")
    assert not (tmp_path / "no").exists()


def test_a_photograph_that_is_gone_is_named(tmp_path, labelled) -> None:
    export_task(labelled, tmp_path / "task", tool="cvat")
    edited("cvat", tmp_path / "task", {})
    (tmp_path / "in/a.png").unlink()
    assert "a.png" in export_task(labelled, tmp_path / "other", tool="cvat").failures[0]
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    assert list(back.changed) == ["b.c"] and "a.png" in back.failures[0]
    assert [path.name for path in (tmp_path / "corrected/labels").iterdir()] == ["b.c.png"]
    photo(tmp_path / "in/a.png", 1)
    assert not import_task(tmp_path / "task", tmp_path / "corrected").failures  # a copy
    for other in ({"seed": 1, "size": (48, 96)}, {"seed": 3}):
        photo(tmp_path / "in/a.png", **other)
        for failures in (
            import_task(tmp_path / "task", tmp_path / "corrected").failures,
            export_task(labelled, tmp_path / "other", tool="cvat").failures,
        ):
            assert len(failures) == 1 and "a.png: has changed since it was predicted" in failures[0]


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_not_annotated_is_left_out(tmp_path, labelled, tool) -> None:
    task = export_task(labelled, tmp_path / "task", tool=tool, views=Views()).task
    first, second = (photo.names for photo in task.photographs)
    edited(tool, tmp_path / "task", {}, without=(*first, second[0]))
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    assert list(back.changed) == ["b.c"] and back.failures == []
    assert back.left_out[0] == "a: not annotated" and "b.c: 5 of 6 tiles are annotated" in back.left_out[1]
    edited(tool, tmp_path / "task", {}, without=(*first, *second))
    with pytest.raises(ValueError, match="nothing to import: a: not annotated; b.c: not annotated"):
        import_task(tmp_path / "task", tmp_path / "corrected")


def rezipped(archive: Path, name: str, data: bytes) -> None:
    with zipfile.ZipFile(archive) as old:
        entries = {entry: old.read(entry) for entry in old.namelist()} | {name: data}
    with zipfile.ZipFile(archive, "w") as new:
        for entry, content in entries.items():
            new.writestr(entry, content)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def test_what_cvat_cannot_have_exported(tmp_path, labelled) -> None:
    export_task(labelled, tmp_path / "task", tool="cvat")
    pink = np.full((HEIGHT, WIDTH, 3), (255, 0, 255), np.uint8)
    for name, data, message in (
        (
            "SegmentationClass/a.png",
            png(pink),
            "export.zip: SegmentationClass/a.png: colours outside the space",
        ),
        ("SegmentationClass/a.png", png(0 * pink[:8]), "SegmentationClass/a.png: 8 x 192 pixels"),
        ("SegmentationClass/a.png", b"nothing", "SegmentationClass/a.png: not a readable image"),
    ):
        rezipped(in_cvat(tmp_path / "task", {}), name, data)
        back = import_task(tmp_path / "task", tmp_path / "corrected")
        assert list(back.changed) == ["b.c"] and message in back.failures[0]
    for text, message in (
        ("road:1,2,3::\nboat:3,4,5::\n", "label 'boat' is none of the model's label space cs13: road, "),
        ("road:1,2\n", "expected label:R,G,B::"),
        ("road:1,2,3::\nsidewalk:1,2,3::\n", "has the colour of another label"),
    ):
        rezipped(in_cvat(tmp_path / "task", {}), "labelmap.txt", text.encode())
        with pytest.raises(ValueError, match=message):
            import_task(tmp_path / "task", tmp_path / "no")
    with zipfile.ZipFile(tmp_path / "task/export.zip", "w") as archive:
        archive.writestr("annotations.xml", "<annotations/>")
    with pytest.raises(ValueError, match="export the task from CVAT as 'Segmentation mask 1.1'"):
        import_task(tmp_path / "task", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_label_studio_cannot_have_exported(tmp_path, labelled) -> None:
    export_task(labelled, tmp_path / "task", tool="label-studio")

    def changed(value: dict) -> Path:
        path = in_label_studio(tmp_path / "task", {})
        entries = json.loads(path.read_text())
        entries[0]["annotations"][1]["result"][0] |= value
        path.write_text(json.dumps(entries))
        return path

    wrong = {"format": "rle", "rle": [1, 2], "brushlabels": ["road"]}
    changed({"value": wrong})
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    assert "export.json: a: the bytes of a mask are cut off" in back.failures[0]
    changed({"original_width": 7})
    back = import_task(tmp_path / "task", tmp_path / "corrected")
    assert "export.json: a: 96 x 7 pixels" in back.failures[0] and list(back.changed) == ["b.c"]
    for value, message in (
        (
            {"value": {**wrong, "brushlabels": ["boat"]}},
            "label 'boat' is none of the model's label space cs13",
        ),
        ({"type": "polygonlabels"}, "a region of type polygonlabels"),
    ):
        changed(value)
        with pytest.raises(ValueError, match=message):
            import_task(tmp_path / "task", tmp_path / "no")
    for text, message in (("[{}]", "not JSON-MIN"), ("<xml/>", "cannot be read as JSON")):
        (tmp_path / "task/export.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            import_task(tmp_path / "task", tmp_path / "no")


def test_what_is_no_task_or_no_prediction(tmp_path, labelled, checkpoint, monkeypatch, capsys) -> None:
    with pytest.raises(ValueError, match="name the folder that `panoda annotate export` wrote"):
        import_task(tmp_path, tmp_path / "out")
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(ValueError, match="not a task of this version"):
        import_task(tmp_path, tmp_path / "out")
    export_task(labelled, tmp_path / "task", tool="cvat")
    with pytest.raises(ValueError, match="name what the tool exported"):
        import_task(tmp_path / "task", tmp_path / "out")
    for tool in TOOLS:
        export_task(labelled, tmp_path / "task", tool=tool)  # another one of the same photographs
    (tmp_path / "task/export.zip").write_bytes(b"days of work")
    with pytest.raises(ValueError, match="holds export.zip, which would be lost"):
        export_task(labelled, tmp_path / "task", tool="cvat")
    assert (tmp_path / "task/export.zip").read_bytes() == b"days of work"
    with pytest.raises(ValueError, match="no predictions of images here"):
        export_task(tmp_path, tmp_path / "out", tool="cvat")
    with pytest.raises(ValueError, match="holds other files"):
        export_task(labelled, tmp_path / "in", tool="cvat")
    manifest = json.loads((labelled / MANIFEST).read_text())
    manifest["images"][1] |= {"name": f"{manifest['images'][0]['name']}-view02"}
    (labelled / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="-view02: so is a tile of .* named"):
        export_task(labelled, tmp_path / "out", tool="cvat", views=Views())
    manifest["images"][0] |= {"projection": "pinhole", "lat_top_deg": None, "taken_for": "photograph"}
    (labelled / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"b.c.JPG is a full circle .*, and .*a.png a photograph"):
        export_task(labelled, tmp_path / "out", tool="cvat")
    manifest["images"] = manifest["images"][:1]
    (labelled / MANIFEST).write_text(json.dumps(manifest))
    status, _, error = run(
        monkeypatch,
        capsys,
        *("annotate", "export", labelled, "--out", tmp_path / "out", "--format", "cvat", "--views", "{}"),
    )
    assert status == 1 and "leave out --views" in error


def test_photographs_with_a_lens(tmp_path, checkpoint) -> None:
    file = photo(tmp_path / "p.png", 0, (64, 80))
    for name, fov in (("unknown", None), ("known", 70.0)):
        predict_files(checkpoint, [file], tmp_path / name, height=32, geometry=Geometry("pinhole", fov))
    with pytest.raises(ValueError, match="predict again with --fov"):
        export_task(tmp_path / "unknown", tmp_path / "task", tool="cvat")
    task: Task = export_task(tmp_path / "known", tmp_path / "task", tool="label-studio").task
    assert (task.projection, task.fov_x_deg, task.latitudes_deg) == ("pinhole", 70.0, None)
    in_label_studio(tmp_path / "task", {})
    assert import_task(tmp_path / "task", tmp_path / "corrected").changed == {"p": 0.0}
    assert read_declaration(str(tmp_path / "corrected/dataset.yaml")).projection == "pinhole"
