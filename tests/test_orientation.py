"""EXIF orientation: images upright, labels with them, and doubt told instead of decided in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from data_project import panoda
from PIL import Image, ImageOps
from raw_data import pinhole_item

from panoda.data.check.check import DOUBTFUL, LABEL_SIZE, check_dataset
from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.formats.images import read_rgb, read_upright
from panoda.data.formats.orientation import turn_back
from panoda.data.prepare.item import ItemSpec, prepare_item
from panoda.system.errors import DataError

SIZE = (40, 64)
TURNED = range(2, 9)
IDS = Encoding(kind="ids", table=tuple((i, i) for i in range(19)))


def scene(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label that is its red channel."""
    label = np.random.default_rng(3).integers(0, 19, size, dtype=np.uint8)
    return np.stack([label, 2 * label, 3 * label], axis=-1), label


def write(path: Path, upright: np.ndarray, *, drawn: int = 1, tag: int | None = None) -> Path:
    """Store pixels as a camera with orientation ``drawn`` does; the file says ``tag``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = {"lossless": True} if path.suffix == ".webp" else {}
    if tag is not None:
        exif = Image.Exif()
        exif[0x0112] = tag
        options["exif"] = exif
    turn_back(Image.fromarray(upright), drawn).save(path, **options)
    return path


def prepared(image: Path, label: Path, size: tuple[int, int] = SIZE, **more: object) -> dict[str, np.ndarray]:
    spec = ItemSpec(size[0], size[1], 19, 19, np.arange(256, dtype=np.uint8))
    item = pinhole_item(image, label, encoding=IDS, **more)
    return prepare_item(item, spec)[0]


@pytest.mark.parametrize("tag", TURNED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_file_is_turned_by_its_own_tag(tmp_path, suffix, tag):
    image, label = scene()
    path = write(tmp_path / f"a.{suffix}", image, drawn=tag, tag=tag)
    found, orientation = read_upright(path)
    assert orientation == tag and (np.asarray(found) == image).all()
    with Image.open(path) as stored:
        assert (np.asarray(ImageOps.exif_transpose(stored)) == image).all()
    if suffix != "webp":  # has no single channel
        arrays = prepared(path, write(tmp_path / f"l.{suffix}", label, drawn=tag, tag=tag))
        assert (arrays["image"][0] == label).all() and (arrays["label"] == label).all()


@pytest.mark.parametrize("tag", TURNED)
def test_a_label_without_tag_is_laid_as_the_sizes_or_the_declaration_tell(tmp_path, tag):
    image, label = scene()
    path = write(tmp_path / "a.jpg", image, drawn=tag, tag=tag)
    drawn_upright = write(tmp_path / "up.png", label)
    drawn_stored = write(tmp_path / "stored.png", label, drawn=tag)
    if tag >= 5:
        assert (prepared(path, drawn_upright)["label"] == label).all()
        assert (prepared(path, drawn_stored)["label"] == label).all()
    else:
        for file in (drawn_upright, drawn_stored):
            with pytest.raises(
                DataError, match=rf"{file.name}: its EXIF orientation is 1, that of its image {tag} .*a\.jpg"
            ) as caught:
                prepared(path, file)
            assert "orientation: stored or orientation: exif" in str(caught.value)
    assert (prepared(path, drawn_upright, orientation="exif")["label"] == label).all()
    assert (prepared(path, drawn_stored, orientation="stored")["label"] == label).all()


def test_both_tagged_and_both_drawn_as_stored(tmp_path):
    """The issue's first case: image and label with orientation 3."""
    image, label = scene()
    path, other = write(tmp_path / "a.png", image, drawn=3, tag=3), tmp_path / "l.png"
    write(other, label, drawn=3, tag=3)
    for rule in ("auto", "exif", "stored"):
        arrays = prepared(path, other, orientation=rule)
        assert (arrays["label"] == arrays["image"][0]).all() and (arrays["label"] == label).all()


def test_a_square_image_is_in_doubt_where_a_long_one_is_not(tmp_path):
    image, label = scene((40, 40))
    path = write(tmp_path / "a.png", image, drawn=6, tag=6)
    with pytest.raises(DataError, match="the sizes do not tell"):
        prepared(path, write(tmp_path / "l.png", label), size=(40, 40))


def test_another_size_names_the_tags(tmp_path):
    image, label = scene()
    path = write(tmp_path / "a.png", image, drawn=6, tag=6)
    wrong = write(tmp_path / "l.png", label[:30])
    with pytest.raises(
        DataError, match=r"30 x 64 .*has 40 x 64 \(its EXIF orientation is 1, that of its image 6"
    ):
        prepared(path, wrong)
    stored = write(tmp_path / "s.png", label, drawn=6)
    with pytest.raises(DataError, match="64 x 40 .* under orientation: exif of the data set"):
        prepared(path, stored, orientation="exif")


def test_an_image_alone_is_turned_whatever_is_declared(tmp_path):
    image, _ = scene()
    path = write(tmp_path / "a.png", image, drawn=8, tag=8)
    item: RawItem = pinhole_item(path, None, orientation="stored")
    arrays = prepare_item(item, ItemSpec(*SIZE, 0, 19, None))[0]
    assert (arrays["image"].transpose(1, 2, 0) == image).all()


@pytest.mark.parametrize("tag", [0, 9])
def test_a_tag_that_does_not_exist_turns_nothing(tmp_path, tag):
    image, _ = scene()
    assert (np.asarray(read_rgb(write(tmp_path / "a.png", image, tag=tag))) == image).all()


def test_check_names_every_file_in_doubt(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    image, label = scene()
    for tag in range(1, 9):
        write(tmp_path / f"img/{tag}.png", np.roll(image, tag, axis=1), drawn=tag, tag=tag)
        write(tmp_path / f"lab/{tag}.png", np.roll(label, tag, axis=1))
    write(tmp_path / "lab/6.png", label[:30])
    tree = {
        "name": "turned",
        "title": "Turned",
        "projection": "pinhole",
        "fov_x_deg": 60,
        "labels": {"space": "cs19"},
        "splits": {"train": {"images": ["img/{id}.png"], "labels": ["lab/{id}.png"]}},
    }
    path = tmp_path / "turned.yaml"
    path.write_text(yaml.safe_dump(tree))
    report = check_dataset(str(path), tmp_path)
    doubtful = [Path(p.path).name for p in report.problems if p.kind == DOUBTFUL]
    assert doubtful == ["2.png", "3.png", "4.png"]
    [size] = [p for p in report.problems if p.kind == LABEL_SIZE]
    assert Path(size.path).name == "6.png" and "that of its image 6" in size.detail
    status, text = panoda("check", str(path), "--path", str(tmp_path))
    assert status == 1 and "orientation in doubt: 3" in text
    path.write_text(yaml.safe_dump({**tree, "orientation": "exif"}))
    assert check_dataset(str(path), tmp_path).counts() == {LABEL_SIZE: 1}


@pytest.mark.parametrize("tag", TURNED)
@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "CMYK"])
def test_tiffs_that_pillow_maps_into_memory(tmp_path, mode, tag):
    """It reads those of orientation 5 to 8 in a wrong shape: garbage without a word."""
    values = np.random.default_rng(1).integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    if mode == "RGBA":
        values[..., 3] = 255
    array = values[..., 0] if mode == "L" else values.view(np.uint16)[..., 0] if mode == "I;16" else values
    if mode == "CMYK":
        array = np.asarray(Image.fromarray(values, mode="CMYK"))
    plain, turned = tmp_path / "plain.tif", tmp_path / "turned.tif"
    image = Image.fromarray(array, mode=mode) if mode == "CMYK" else Image.fromarray(array)
    image.save(plain)
    exif = Image.Exif()
    exif[0x0112] = tag
    turn_back(image, tag).save(turned, exif=exif)
    assert (np.asarray(read_rgb(turned)) == np.asarray(read_rgb(plain))).all()
