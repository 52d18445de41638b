"""Files in, palette PNGs, overlays and class shares out; bad files do not stop the good ones."""

from __future__ import annotations

import errno
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image
from test_gpano import HALF, packet, save

from panoda.cli.app import main
from panoda.deployment.model import Model, load
from panoda.deployment.predict import how_else, original_ids, predict_files
from panoda.deployment.view import Geometry, View
from panoda.geometry.area import WHOLE, tilt
from panoda.geometry.views import Views
from panoda.inference.whole import predict_image
from panoda.labels import LabelSpace, get_label_space
from panoda.models import create_model
from panoda.models.core.checkpoint import load_model, make_card, save_model
from panoda.models.core.errors import CheckpointError
from panoda.system.machine import peak_memory, reset_peak_memory

SPACE = get_label_space("cs13")


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    values = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    values[:, -2:] = values[:, :1]  # ends that meet
    Image.fromarray(values).resize((width, height)).convert(mode).save(path)
    return path


def test_outputs(tmp_path, checkpoint):
    files = [
        picture(tmp_path / "in" / "a.png", (50, 101)),
        picture(tmp_path / "in" / "b.jpg", (80, 64), "CMYK"),
        picture(tmp_path / "in" / "sub" / "a.png", (64, 192), "L"),
    ]
    result = predict_files(checkpoint, files, tmp_path / "out", height=48)
    assert result.failures == [] and [p.name for p in result.labels] == ["a.png", "b.png", "a-2.png"]
    for file, label in zip(files, result.labels, strict=True):
        with Image.open(label) as written, Image.open(file) as raw:
            assert written.mode == "P" and written.size == raw.size
            assert written.getpalette()[: 3 * 13] == [c for colour in SPACE.palette for c in colour]
            assert np.asarray(written).max() < 13
        with Image.open(tmp_path / "out" / "overlays" / f"{label.stem}.jpg") as overlay:
            assert overlay.size == written.size
    table = pd.read_csv(result.summary)
    assert table.image.tolist() == [str(f) for f in files] and table.name.tolist() == ["a", "b", "a-2"]
    shares = table[list(SPACE.names)].to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    counts = np.bincount(np.asarray(Image.open(result.labels[0])).ravel(), minlength=13)
    np.testing.assert_allclose(shares[0], counts / (50 * 101), atol=1e-6)


def test_bad_files_are_reported_and_the_rest_is_predicted(tmp_path, checkpoint):
    good = picture(tmp_path / "good.png", (40, 80))
    empty = tmp_path / "empty.jpg"
    empty.touch()
    cut = picture(tmp_path / "cut.png", (64, 128))
    cut.write_bytes(cut.read_bytes()[:100])
    small = picture(tmp_path / "small.png", (20, 200))
    result = predict_files(checkpoint, [empty, cut, small, good], tmp_path / "out")
    assert [p.name for p in result.labels] == ["good.png"]
    reasons = {path.name: reason for path, reason in result.failures}
    assert list(reasons) == ["empty.jpg", "cut.png", "small.png"]
    assert "not a readable image" in reasons["cut.png"] and "too small: 20 x 200" in reasons["small.png"]
    assert len(pd.read_csv(result.summary)) == 1
    assert sorted(p.name for p in (tmp_path / "out" / "labels").iterdir()) == ["good.png"]


def test_all_bad_still_gives_a_table(tmp_path, checkpoint):
    (tmp_path / "a.png").touch()
    result = predict_files(checkpoint, [tmp_path / "a.png"], tmp_path / "out")
    assert result.labels == [] and len(result.failures) == 1 and len(pd.read_csv(result.summary)) == 0


def test_arguments_that_are_no_images(tmp_path, checkpoint):
    (tmp_path / "notes.txt").touch()
    files = [picture(tmp_path / "a.png", (40, 80)), tmp_path / "notes.txt", tmp_path, tmp_path / "no.png"]
    result = predict_files(checkpoint, files, tmp_path / "out")
    reasons = "\n".join(reason for _, reason in result.failures)
    assert "notes.txt: not the name of an image" in reasons and "no.png: no such file" in reasons
    assert f"{tmp_path}: a folder" in reasons and [path.name for path in result.labels] == ["a.png"]
    with pytest.raises(ValueError, match="no images given"):
        predict_files(checkpoint, [], tmp_path / "out")
    with pytest.raises(ValueError, match="at least 32"):
        predict_files(checkpoint, files[:1], tmp_path / "out", height=8)


def test_other_files_in_the_folder_stay(tmp_path, checkpoint):
    out = tmp_path / "out"
    (out / "labels").mkdir(parents=True)
    (out / "labels" / "mine.png").touch()
    one = picture(tmp_path / "a.png", (40, 80))
    predict_files(checkpoint, [one, one], out)
    assert sorted(p.name for p in (out / "labels").iterdir()) == ["a.png", "mine.png"]
    assert len(pd.read_csv(out / "summary.csv")) == 1


def test_working_height_and_wrap(tmp_path, checkpoint, monkeypatch):
    asked: list[tuple[int, bool]] = []

    def spy(model, image, *, height, wrap, **_):
        asked.append((height, wrap))
        return (torch.zeros(image.shape[1:], dtype=torch.uint8),) * 2

    monkeypatch.setattr("panoda.deployment.model.predict_image", spy)
    files = [picture(tmp_path / "pano.png", (600, 1200)), picture(tmp_path / "photo.png", (60, 80))]
    predict_files(checkpoint, files, tmp_path / "out")
    predict_files(checkpoint, files, tmp_path / "out", height=96, geometry=Geometry(wrap=True))
    assert asked == [(512, True), (60, False), (96, True), (60, True)]


def test_card_says_how_large_pixels_were_in_training(tmp_path, checkpoint, monkeypatch):
    model, card = load_model(checkpoint)
    prepared = {"height": 96, "width": 512, "full_circle": True}
    card = card.model_copy(update={"params": {"prepared": prepared}})
    save_model(tmp_path / "model.safetensors", model, card)
    asked: list[int] = []

    def spy(model, image, *, height, wrap, **_):
        asked.append(height)
        return (torch.zeros(image.shape[1:], dtype=torch.uint8),) * 2

    monkeypatch.setattr("panoda.deployment.model.predict_image", spy)
    files = [picture(tmp_path / "full.png", (600, 1200)), picture(tmp_path / "photo.png", (300, 400))]
    predict_files(tmp_path / "model.safetensors", files, tmp_path / "out")
    assert asked == [256, 96]  # a full sphere 512 pixels around is 256 high; others take the prepared height


def test_a_label_space_file_that_moved_is_not_missed(tmp_path):
    """Names and colours are in the card: prediction, export and reading need the checkpoint alone."""
    file = tmp_path / "mine.yaml"
    file.write_text("names: [quay, water]\npalette: [[1, 2, 3], [4, 5, 6]]\n")
    model = create_model("trans4pass_nano", num_classes=2)
    card = make_card(model, label_space=str(file), stage="pretrain", seed=0)
    save_model(tmp_path / "new.safetensors", model, card)
    save_model(tmp_path / "old.safetensors", model, card.model_copy(update={"palette": None}))
    file.unlink()
    image = picture(tmp_path / "a.png", (40, 80))
    for name, colours in (("new", [1, 2, 3, 4, 5, 6]), ("old", [128, 0, 0, 0, 128, 0])):
        result = predict_files(tmp_path / f"{name}.safetensors", [image], tmp_path / name)
        assert Image.open(result.labels[0]).getpalette()[:6] == colours
        assert pd.read_csv(result.summary)[["quay", "water"]].sum(axis=1).round(3).tolist() == [1.0]
    swapped = LabelSpace("mine.yaml", ("water", "quay"), ((0, 0, 0), (1, 1, 1)))
    with pytest.raises(CheckpointError, match="class 0 is 'quay' there and 'water' here; train it again"):
        load_model(tmp_path / "new.safetensors", space=swapped)


def test_a_crop_is_predicted_at_the_resolution_of_the_whole_panorama(
    tmp_path, checkpoint, monkeypatch, capsys
):
    model, card = load_model(checkpoint)
    prepared = {"height": 256, "width": 512, "full_circle": True, "projection": "erp", "fov_x_deg": 360.0}
    save_model(tmp_path / "m.safetensors", model, card.model_copy(update={"params": {"prepared": prepared}}))
    files = [
        save(tmp_path / "crop.jpg", 192, 512, xmp=packet(HALF)),
        save(tmp_path / "whole.jpg", 512, 1024),
        save(tmp_path / "photo.jpg", 512, 1024, exif={ExifTags.Base.FocalLengthIn35mmFilm: 28}),
    ]
    asked: list[tuple[int, bool]] = []

    def spy(model, image, *, height, wrap, **_):
        asked.append((height, wrap))
        return (torch.zeros(image.shape[1:], dtype=torch.uint8),) * 2

    monkeypatch.setattr("panoda.deployment.model.predict_image", spy)
    arguments = ["panoda", "predict", *map(str, files), "--checkpoint", str(tmp_path / "m.safetensors")]
    for options in ([], ["--projection", "pinhole"], ["--no-wrap"]):
        monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "out"), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        if not options:
            lines = capsys.readouterr().out.splitlines()
            table = pd.read_csv(tmp_path / "out" / "summary.csv")
    # 1024 pixels around: 96 of 192 rows at half the size, as in the whole; 69 degrees of a photograph.
    assert asked[:3] == [(96, False), (256, True), (56, False)]
    assert [wrap for _, wrap in asked[3:]] == [False] * 6
    said = ["half circle of 180 degrees (GPano)", "full circle (2:1, no metadata, its ends meet)"]
    said.append("pinhole photograph of 69 degrees (EXIF focal length)")
    hints = ["", how_else(View("erp", 360.0, True, "", guessed=True)), ""]
    assert lines[:3] == [f"{file}: {text}{hint}" for file, text, hint in zip(files, said, hints, strict=True)]
    assert table.taken_for.tolist() == said and table.wrapped.tolist() == [False, True, False]
    assert table.projection.tolist() == ["erp", "erp", "pinhole"] and table.fov_x_deg[0] == 180
    assert "pinhole images are no circles" in refused(monkeypatch, capsys, arguments, tmp_path)


def refused(monkeypatch, capsys, arguments, folder) -> str:
    return said(
        monkeypatch, capsys, *arguments[2:], "--out", folder / "no", "--projection", "pinhole", "--wrap"
    )


@pytest.mark.parametrize("sliding", [None, (48, 32)])
def test_a_photograph_is_not_closed_around(tmp_path, checkpoint, sliding):
    """The left columns of a photograph do not depend on its right ones, with and without windows."""
    one = save(tmp_path / "a.png", 64, 128)
    pixels = np.asarray(Image.open(one)).copy()
    pixels[:, 96:] = 255 - pixels[:, 96:]
    Image.fromarray(pixels).save(tmp_path / "b.png")
    labels = {}
    for name, options in {"open": {"projection": "pinhole"}, "closed": {"projection": "erp"}}.items():
        result = predict_files(
            checkpoint,
            [one, tmp_path / "b.png"],
            tmp_path / name,
            height=64,
            sliding=sliding,
            geometry=Geometry(**options),
        )
        labels[name] = [np.asarray(Image.open(path)) for path in result.labels]
    if sliding:  # the model itself sees a whole image at once
        assert np.array_equal(*(label[:, :32] for label in labels["open"]))
    assert not np.array_equal(labels["open"][0][:, :16], labels["closed"][0][:, :16])
    assert (labels["closed"][0][:, :16] != labels["closed"][1][:, :16]).any()


def test_disk_full(tmp_path, checkpoint, monkeypatch):
    path = picture(tmp_path / "a.png", (40, 80))

    def full(self, target, **options):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="disk full while writing .*out"):
        predict_files(checkpoint, [path], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("vit:vit_tiny_patch16_224.augreg_in21k", {"decoder": "upernet", "width": 16}),
        (
            "vit:vit_tiny_patch16_224",
            {"decoder": "setr_mla", "width": 16, "wrap": True, "blocks": (1, 2, 3, 4)},
        ),
        ("timm:test_resnet", {"decoder": "fcn", "width": 16, "auxiliary_weights": ()}),
    ],
)
def test_a_file_alone_is_enough_for_any_pair(tmp_path, encoder, options):
    torch.manual_seed(3)
    model = create_model(encoder, num_classes=13, **options).eval()
    file = tmp_path / "elsewhere" / "best.safetensors"
    save_model(file, model, make_card(model, label_space="cs13", stage="adapt", seed=0))
    loaded, card = load_model(file)
    assert loaded.wraps == bool(options.get("wrap")) and loaded.arguments == model.arguments
    assert card.class_names == SPACE.names and card.git_commit and card.versions["timm"]
    path = picture(tmp_path / "pano.png", (64, 160))
    result = predict_files(file, [path], tmp_path / "out", height=48)
    assert result.failures == []
    image = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())
    expected = predict_image(model, image, height=48, wrap=True)[0]
    assert np.array_equal(np.asarray(Image.open(result.labels[0])), expected.numpy())


def test_sliding_windows(tmp_path, checkpoint):
    file = picture(tmp_path / "a.png", (64, 192))
    whole = predict_files(checkpoint, [file], tmp_path / "whole", height=64).labels[0]
    parts = predict_files(checkpoint, [file], tmp_path / "parts", height=64, sliding=(48, 32)).labels[0]
    one, two = (np.asarray(Image.open(path)) for path in (whole, parts))
    assert one.shape == two.shape and 0 < (one != two).mean() < 0.5


def said(monkeypatch, capsys, *arguments: object) -> str:
    """What `panoda predict` prints when it fails."""
    monkeypatch.setattr(sys, "argv", ["panoda", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "Errno" not in error and "validation error" not in error
    return error


def test_what_the_command_says(tmp_path, checkpoint, monkeypatch, capsys):
    one = picture(tmp_path / "in" / "a.png", (40, 80))
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign.onnx").touch()
    for arguments, message in (
        (["--checkpoint", tmp_path / "in", "--out", out], "in: a folder, expected a file such as"),
        (["--checkpoint", tmp_path / "foreign.onnx", "--out", out], "foreign.onnx: not a model that"),
        (["--checkpoint", checkpoint, "--out", one], "a.png/labels: not a directory; a file lies where"),
        ([tmp_path / "empty", "--checkpoint", checkpoint, "--out", out], "empty: no images in this folder"),
        (
            ["--checkpoint", "segformer-b1", "--out", out],
            "segformer-b1: no such file, and no published weights",
        ),
    ):
        assert message in said(monkeypatch, capsys, one, *arguments)
    assert not out.exists()
    (tmp_path / "in" / "b.png").touch()
    error = said(monkeypatch, capsys, tmp_path / "in", "--checkpoint", checkpoint, "--out", out)
    assert error.count("b.png: ") == 1 and "1 of 2 images could not be read" in error


def test_a_link_to_nothing_in_a_folder_is_left_out_and_named(tmp_path, checkpoint, monkeypatch, capsys):
    picture(tmp_path / "in" / "a.png", (40, 80))
    (tmp_path / "in" / "b.png").symlink_to("gone.png")
    arguments = ["panoda", "predict", str(tmp_path / "in"), "--checkpoint", str(checkpoint)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert (
        f"left out: links to nothing (1): {tmp_path}/in/b.png points to gone.png" in capsys.readouterr().err
    )
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["a.png"]


def test_a_folder_is_read_again_without_what_prediction_wrote_into_it(tmp_path, checkpoint, monkeypatch):
    picture(tmp_path / "a.png", (40, 80))
    (tmp_path / "._a.png").touch()  # some systems put such companions beside every file
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(
        sys,
        "argv",
        ["panoda", "predict", str(tmp_path), "--checkpoint", str(checkpoint), "--out", str(tmp_path)],
    )
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 1


def test_a_full_circle_by_its_shape_alone_says_how_to_say_otherwise(tmp_path, checkpoint):
    file, told = picture(tmp_path / "street.png", (64, 128)), []
    predict_files(checkpoint, [file], tmp_path / "a", say=told.append)
    assert (
        "full circle (2:1, no metadata, its ends meet)" in told[0]
        and "--projection pinhole" in told[0]
        and "--no-wrap" in told[0]
    )
    for number, options in enumerate(
        ({"projection": "pinhole"}, {"wrap": False}, {"wrap": True}, {"projection": "erp"})
    ):
        told.clear()
        predict_files(
            checkpoint, [file], tmp_path / f"out{number}", say=told.append, geometry=Geometry(**options)
        )
        assert ("full circle" in told[0]) == (number > 1) and "if it is a photograph" not in told[0]


def test_perspective_views_of_full_circles_alone(tmp_path, checkpoint):
    wide, narrow = picture(tmp_path / "a.png", (64, 128)), picture(tmp_path / "b.png", (64, 80))
    result = predict_files(
        checkpoint, [wide, narrow], tmp_path / "out", views=Views(fov_deg=60, pitches=(0, 45))
    )
    assert [path.name for path in result.labels] == ["a.png"]
    assert [reason for _, reason in result.failures] == [
        f"{narrow}: pinhole photograph (1.25:1, no metadata): no full circle, which perspective views need"
    ]


def test_the_option_views(tmp_path, checkpoint, monkeypatch, capsys):
    one = picture(tmp_path / "a.png", (64, 128))
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path / "out", "--views"]
    assert "fov_deg: Input should be less than or equal to 150" in said(
        monkeypatch, capsys, one, *arguments, "200"
    )
    assert "unknown; did you mean share?" in said(monkeypatch, capsys, one, *arguments, "{shares: 1}")
    monkeypatch.setattr(
        sys, "argv", ["panoda", "predict", str(one), *map(str, arguments), "{pitches: [0, -30]}"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert (tmp_path / "out" / "labels" / "a.png").is_file()


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and errors of `panoda predict`."""
    monkeypatch.setattr(sys, "argv", ["panoda", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0, *capsys.readouterr()


def test_the_option_precision(tmp_path, checkpoint, monkeypatch, capsys):
    one, out = picture(tmp_path / "a.png", (64, 128)), tmp_path / "out"
    given = (one, "--out", out, "--precision", "bfloat16", "--device", "cpu", "--checkpoint")
    assert run(monkeypatch, capsys, *given, checkpoint)[0] == 0
    assert json.loads((out / "manifest.json").read_text())["options"]["dtype"] == "torch.bfloat16"
    (tmp_path / "m.onnx").touch()
    status, _, text = run(monkeypatch, capsys, *given, tmp_path / "m.onnx")
    assert status == 1 and "leave out --precision" in text


def test_confidence_manifest_and_tables(tmp_path, checkpoint):
    files = [picture(tmp_path / "a.png", (64, 128)), picture(tmp_path / "b.png", (64, 80))]
    out = tmp_path / "out"
    result = predict_files(checkpoint, files, out, height=48)
    model = load(checkpoint, device="cpu")
    table, same = pd.read_csv(result.summary), pd.read_parquet(out / "summary.parquet")
    assert table.columns.tolist() == same.columns.tolist() and len(table) == len(same) == 2
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"]["sha256"] and manifest["model"]["class_names"] == list(SPACE.names)
    for file, record in zip(files, manifest["images"], strict=True):
        found = model.predict(file, height=48)
        assert found.confidence.dtype == np.float32 and 1 / 13 - 0.01 <= found.confidence.min()
        written = np.asarray(Image.open(out / record["files"]["confidence"]))
        assert np.array_equal(written, found.confidence_255)
        assert record["pixel_shares"] == found.shares() and record["working_size"][0] == 48
    circle, photo = manifest["images"]
    assert (circle["lat_top_deg"], circle["projection"], circle["wrapped"]) == (90, "erp", True)
    assert 0 <= circle["sky_view_factor"] <= 1 and photo["sky_view_factor"] is None
    assert sum(circle["solid_angle_shares"].values()) == pytest.approx(1)
    assert photo["solid_angle_shares"] is None and np.isnan(table["sky (sr)"][1])


def test_what_is_done_is_left_alone(tmp_path, checkpoint, monkeypatch):
    files = [picture(tmp_path / f"{name}.png", (40, 80)) for name in "ab"]
    out, seen = tmp_path / "out", []
    label = Model.label
    monkeypatch.setattr(Model, "label", lambda self, p, **o: seen.append(p.path.name) or label(self, p, **o))

    def again(checkpoint=checkpoint, **options) -> list[str]:
        seen.clear()
        result = predict_files(checkpoint, files, out, **options)
        assert len(result.labels) == len(pd.read_csv(result.summary)) == 2
        assert result.kept == 2 - len(seen)
        return list(seen)

    assert again() == ["a.png", "b.png"] and again() == []
    picture(tmp_path / "a.png", (48, 96))
    assert again() == ["a.png"]
    (out / "overlays" / "b.jpg").unlink()
    assert again() == ["b.png"]
    assert again(geometry=Geometry("pinhole")) == ["a.png", "b.png"]
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(checkpoint.read_bytes())
    assert again(moved, geometry=Geometry("pinhole")) == []  # the model is its bytes
    net, card = load_model(checkpoint)
    save_model(moved, net, card.model_copy(update={"seed": 5}))
    assert again(moved, geometry=Geometry("pinhole")) == ["a.png", "b.png"]
    (out / "manifest.json").write_text("{")
    assert again(moved, geometry=Geometry("pinhole")) == ["a.png", "b.png"]


def test_a_later_call_adds_to_the_folder(tmp_path, checkpoint):
    one, two = (picture(tmp_path / name / "a.png", (40, 80)) for name in ("x", "y"))
    predict_files(checkpoint, [one], tmp_path / "out")
    result = predict_files(checkpoint, [two], tmp_path / "out")
    assert [path.name for path in result.labels] == ["a-2.png"]
    assert pd.read_csv(result.summary).image.tolist() == [str(one), str(two)]


def test_a_call_from_elsewhere_finds_the_same_image(tmp_path, checkpoint, monkeypatch):
    one = picture(tmp_path / "in" / "one.png", (40, 80))
    predict_files(checkpoint, [one], tmp_path / "out")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = predict_files(checkpoint, [Path("../in/one.png"), one], Path("../out"))
    assert result.kept == len(result.labels) == 1


def test_a_stopped_call_keeps_what_it_has(tmp_path, checkpoint, monkeypatch):
    files = [picture(tmp_path / f"{number}.png", (40, 80)) for number in range(8)]
    label, seen = Model.label, []

    def stop(self, picture, **options):
        seen.append(picture.path)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return label(self, picture, **options)

    monkeypatch.setattr(Model, "label", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_files(checkpoint, files, tmp_path / "out", jobs=1)
    result = predict_files(checkpoint, files, tmp_path / "out", jobs=1)
    assert result.kept >= 4 and len(result.labels) == 8


def test_level_labels_turn_back(tmp_path, checkpoint):
    """A panorama taken with a tilted camera gets the labels of the level one, turned."""
    torch.manual_seed(1)
    level = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 8), (64, 128), mode="bilinear") * 255
    pitch, roll = 12.0, -20.0
    rays = WHOLE.rays(64, 128) @ tilt(math.radians(pitch), math.radians(roll)).T
    tilted = WHOLE.sample(level, rays)
    model = load(checkpoint, device="cpu")
    straight, turned = (x[0].permute(1, 2, 0).round().to(torch.uint8).numpy() for x in (level, tilted))
    expected = WHOLE.sample(
        torch.from_numpy(model.predict(straight, projection="erp").label)[None, None], rays, mode="nearest"
    )[0, 0].numpy()
    as_taken = model.predict(turned, projection="erp")
    levelled = model.predict(turned, projection="erp", upright=True, pitch_deg=pitch, roll_deg=roll)
    right = (levelled.label == expected).mean()
    assert right > 0.93 and right > (as_taken.label == expected).mean()
    views = levelled.views(Views(fov_deg=60))
    assert len(views) == 9 and views[0].label.shape == views[0].image.shape[:2] and views[0].label.max() < 13
    with pytest.raises(ValueError, match="a perspective view itself"):
        model.predict(turned, projection="pinhole").views()


def test_lists_patterns_and_broken_files(tmp_path, checkpoint, monkeypatch, capsys):
    for name in ("in/a.png", "in/sub/b.png", "c.png"):
        picture(tmp_path / name, (40, 80))
    (tmp_path / "in/cut.jpg").write_bytes(b"no image")
    names = tmp_path / "list.txt"
    names.write_text(f"# mine\n{tmp_path}/c.png\n\n{tmp_path}/gone.png\n")
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out")
    status, out, err = run(
        monkeypatch, capsys, tmp_path / "in" / "**" / "*.*", f"@{names}", "--json", *options
    )
    assert status == 1 and "2 of 5 images could not be read" in err
    assert f"{tmp_path}/gone.png: no such file" in err and "cut.jpg" in err and "a.png: full circle" in err
    manifest = json.loads(out)
    assert [record["name"] for record in manifest["images"]] == ["a", "b", "c"]
    assert len(manifest["failures"]) == 2
    (tmp_path / "in/cut.jpg").unlink()
    status, out, err = run(monkeypatch, capsys, tmp_path / "in", *options)
    assert (status, "2 of them already there" in out) == (0, True)
    assert "no images match" in run(monkeypatch, capsys, tmp_path / "x*.png", *options)[2]
    assert (
        "expected 170 at most"
        in run(monkeypatch, capsys, tmp_path / "c.png", *options, "--projection", "pinhole", "--fov", "180")[
            2
        ]
    )


def test_ids_of_the_original_data_set(tmp_path, checkpoint, monkeypatch, capsys):
    one = picture(tmp_path / "a.png", (40, 80))
    plain = np.asarray(Image.open(predict_files(checkpoint, [one], tmp_path / "plain").labels[0]))
    ids = original_ids("cityscapes", SPACE)
    assert ids[SPACE.index("road")] == 7 and ids[SPACE.index("sky")] == 23 and ids[SPACE.index("car")] == 26
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--ids")
    assert run(monkeypatch, capsys, one, *options, "cityscapes")[0] == 0
    with Image.open(tmp_path / "out/labels/a.png") as written:
        assert written.mode == "L" and np.array_equal(np.asarray(written), np.array(ids)[plain])
    assert "labels in colours" in run(monkeypatch, capsys, one, *options, "camvid32")[2]
    assert "no label of" in run(monkeypatch, capsys, one, *options, "camvid")[2]


def test_exif_turns_the_image_before_the_model_sees_it(tmp_path, checkpoint):
    upright = picture(tmp_path / "a.png", (128, 64))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(upright) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    one, two = (
        np.asarray(Image.open(path))
        for path in predict_files(checkpoint, [upright, tmp_path / "b.png"], tmp_path / "out").labels
    )
    assert one.shape == (128, 64) and np.array_equal(one, two)


def test_source_colours_need_a_model_that_knows_them(tmp_path, checkpoint):
    photo = picture(tmp_path / "a.png", (64, 128))
    with pytest.raises(ValueError, match="set source_colours to 0, or train the source model again"):
        predict_files(checkpoint, [photo], tmp_path / "out", source_colours=1.0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="expected a weight of 0 or more"):
        load(checkpoint).predict(photo, source_colours=-1.0)
    net, card = load_model(checkpoint)
    knowing = tmp_path / "knowing.safetensors"
    save_model(knowing, net, card.model_copy(update={"colours": ((25.0, 30.0, -70.0), (4.0, 4.0, 20.0))}))
    plain, both = (load(knowing).predict(photo, source_colours=weight) for weight in (0.0, 1.0))
    assert (plain.label != both.label).any()
    assert predict_files(knowing, [photo], tmp_path / "out", source_colours=1.0).failures == []
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/labels/a.png")), both.label)


def test_names_of_earlier_images_stay_taken_when_options_change(tmp_path, checkpoint):
    first, second = picture(tmp_path / "x/a.png", (64, 128)), picture(tmp_path / "y/a.png", (64, 128))
    out = tmp_path / "out"
    predict_files(checkpoint, [first], out, height=32)
    before = (out / "labels/a.png").read_bytes()
    result = predict_files(checkpoint, [second], out, height=64)
    assert [p.name for p in result.labels] == ["a-2.png"] and (out / "labels/a.png").read_bytes() == before
    assert predict_files(checkpoint, [first], out, height=64).labels == [out / "labels/a.png"]


def test_long_names_are_cut(tmp_path, checkpoint):
    files = [picture(tmp_path / f"{'ü' * 120}{end}.png", (40, 80)) for end in "ab"]
    result = predict_files(checkpoint, files, tmp_path / "out")
    assert [path.name for path in result.labels] == [f"{'ü' * 75}.png", f"{'ü' * 75}-2.png"]


def test_a_projection_that_does_not_exist_is_refused(tmp_path, checkpoint):
    with pytest.raises(ValueError, match="'equirectangular'; expected one of auto, erp, band, pinhole"):
        load(checkpoint).predict(picture(tmp_path / "a.png", (64, 128)), projection="equirectangular")


def test_a_value_error_of_one_image_is_named_and_the_rest_is_done(tmp_path, checkpoint, monkeypatch):
    files = [picture(tmp_path / name, (64, 128)) for name in ("a.png", "b.png")]
    label = Model.label

    def picky(model, shown, **options):
        if shown.path == files[0]:
            raise ValueError("takes another size")
        return label(model, shown, **options)

    monkeypatch.setattr(Model, "label", picky)
    result = predict_files(checkpoint, files, tmp_path / "out", height=32)
    assert result.failures == [(files[0], f"{files[0]}: takes another size")] and len(result.labels) == 1


def test_large_images_are_copied_and_blended_strip_by_strip(tmp_path, checkpoint, monkeypatch):
    file = picture(tmp_path / "a.png", (64, 128))
    found = load(checkpoint).predict(file)
    at_once = found.overlay().tobytes()
    monkeypatch.setattr("panoda.data.formats.images._STRIP_PIXELS", 5 * 128)
    monkeypatch.setattr("panoda.deployment.measures._STRIP_PIXELS", 5 * 128)
    again = load(checkpoint).predict(file)
    assert np.array_equal(again.image, np.asarray(Image.open(file))) and again.overlay().tobytes() == at_once
    read_only = np.asarray(Image.open(file))
    for same in (read_only, again.image[:, ::-1].copy()[:, ::-1]):
        assert np.array_equal(load(checkpoint).predict(same).label, found.label)
    assert not read_only.flags.writeable


def test_a_large_image_is_held_once_beside_what_is_written(tmp_path, checkpoint):
    """Its pixels, what Pillow holds of it (4 bytes a pixel), label and confidence: 9 bytes, and strips."""
    file = picture(tmp_path / "a.jpg", (3072, 6144))
    predict_files(checkpoint, [picture(tmp_path / "small.png", (64, 128))], tmp_path / "out", height=32)
    before = reset_peak_memory()
    predict_files(checkpoint, [file], tmp_path / "out", height=32)
    grown = peak_memory() - before
    assert grown < 13 * 3072 * 6144, f"{grown / (3072 * 6144):.1f} bytes a pixel"
