"""The page to look around in: what it holds, and what a headless Chromium sees of it from file://."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import BROWSER, Page, opened
from PIL import Image
from report_outputs import PARAMS, PROVENANCE, write_outputs
from test_gpano import packet, save
from test_predict import picture

from panoda.deployment.predict import predict_files
from panoda.deployment.view import Geometry
from panoda.deployment.viewer import indexed_uri
from panoda.deployment.viewer_page import write_viewer
from panoda.stages.report import report

PLACED = {
    "ProjectionType": "equirectangular",
    "FullPanoWidthPixels": 1024,
    "FullPanoHeightPixels": 512,
    "CroppedAreaImageWidthPixels": 256,
    "CroppedAreaImageHeightPixels": 128,
    "CroppedAreaLeftPixels": 640,
    "CroppedAreaTopPixels": 64,
}


NAMES = ("</script> circle", "part", "photo")


def columns(folder: Path, classes: Sequence[int]) -> None:
    """Labels in columns of known classes, from left to right; all of one confidence."""
    for name in NAMES:
        width, height = (128, 96) if name == "photo" else (256, 128)
        label = np.asarray(classes, dtype=np.uint8)[np.arange(width) * len(classes) // width]
        Image.fromarray(np.broadcast_to(label, (height, width)).copy()).save(
            folder / "labels" / f"{Path(name).name}.png"
        )
        sure = np.full((height, width), 51 * (1 + classes[0] // 12), dtype=np.uint8)
        Image.fromarray(sure).save(folder / "confidence" / f"{Path(name).name}.png")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("view")
    circle = picture(folder / f"{NAMES[0]}.png", (128, 256))
    part = save(folder / "part.jpg", 128, 256, xmp=packet(PLACED))
    photo = picture(folder / "photo.png", (96, 128))
    for name, classes in (("out", range(13)), ("after", range(12, -1, -1))):
        predict_files(checkpoint, [circle, part, photo], folder / name)
        columns(folder / name, list(classes))
    write_viewer(folder / "out")
    return folder / "out"


def data(out: Path, page: str = "view.html") -> Any:
    text = (out / page).read_text(encoding="utf-8")
    return json.loads(re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[0])


def test_everything_is_in_one_file(out: Path) -> None:
    text = (out / "view.html").read_text(encoding="utf-8")
    assert "@@" not in text and "Permission is hereby granted, free of charge" in text
    assert not re.findall(r'src="https?:|<link|@import|url\(["\']?https?:', text)
    assert text.count("</script>") == 3


def test_images_lie_where_they_belong(out: Path) -> None:
    circle, part, photo = data(out)["images"]
    assert (circle["fov"], circle["latTop"], circle["latBottom"], circle["centreLon"]) == (360, 90, -90, 0)
    assert [part[key] for key in ("fov", "latTop", "latBottom", "centreLon")] == pytest.approx(
        [90, 67.5, 22.5, 90]
    )
    assert photo["fov"] == pytest.approx(60) and photo["latTop"] == pytest.approx(
        23.4, abs=0.1
    )  # an unknown lens
    assert "shown 60 degrees wide" in photo["takenFor"] and [one["title"] for one in circle["maps"]] == [
        "Labels"
    ]


def test_the_page_can_read_the_bytes_of_its_pictures() -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    text = base64.b64decode(indexed_uri(values).partition(",")[2])
    places = {text[at : at + 4]: at for at in range(8, len(text)) if text[at : at + 4] in (b"IHDR", b"IDAT")}
    kinds = struct.unpack(">IIBB", text[places[b"IHDR"] + 4 : places[b"IHDR"] + 14])
    size = struct.unpack(">I", text[places[b"IDAT"] - 4 : places[b"IDAT"]])[0]
    rows = zlib.decompress(text[places[b"IDAT"] + 4 : places[b"IDAT"] + 4 + size])
    assert kinds == (9, 7, 8, 3)  # 8 bits, a palette
    assert rows == b"".join(b"\0" + row.tobytes() for row in values)  # not filtered


def test_two_predictions_are_matched_by_the_photograph(out: Path, tmp_path: Path, checkpoint: Path) -> None:
    after = tmp_path / "after"
    more = picture(tmp_path / "more.png", (40, 80))
    predict_files(checkpoint, [out.parent / "photo.png", more], after)
    said: list[str] = []
    write_viewer(after, before=out, say=said.append)
    assert [line.split(" in ")[0] for line in said] == ["left out: 2 images", "left out: 1 image"]
    (photo,) = data(after, "compare.html")["images"]
    assert [one["title"] for one in photo["maps"]] == ["Before", "After"] and f"After: {after}" in photo[
        "takenFor"
    ]
    with pytest.raises(ValueError, match="none of the photographs can be shown"):
        predict_files(checkpoint, [out.parent / "photo.png"], tmp_path / "erp", geometry=Geometry("erp"))
        write_viewer(tmp_path / "erp", before=out, say=said.append)
    assert "take it for different things" in said[-1]
    predict_files(checkpoint, [more], tmp_path / "other")
    with pytest.raises(ValueError, match="no photograph in common; images are matched by their path"):
        write_viewer(tmp_path / "other", before=out, say=said.append)
    manifest = json.loads((after / "manifest.json").read_text(encoding="utf-8"))
    manifest["model"] |= {"class_names": ["grain"], "label_space": "grain1"}
    (after / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ValueError, match=r"labels of different classes \(cs13 and grain1\)"):
        write_viewer(after, before=out)
    (after / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"manifest\.json: cannot be read, or is of another version; predict again"
    ):
        write_viewer(out, before=after)


def test_what_cannot_be_shown(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="no predictions of images here"):
        write_viewer(tmp_path)
    gone, there = (picture(tmp_path / f"{name}.png", (40, 80)) for name in ("gone", "there"))
    predict_files(checkpoint, [gone, there], tmp_path / "out", geometry=Geometry("erp"))
    gone.unlink()
    said: list[str] = []
    write_viewer(tmp_path / "out", say=said.append)
    assert len(said) == 1 and "gone.png" in said[0] and len(data(tmp_path / "out")["images"]) == 1
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(gone)  # another photograph of the same size
    write_viewer(tmp_path / "out", say=said.append)
    assert "gone.png: has changed since it was predicted" in said[1]
    gone.unlink()
    label = tmp_path / "out/labels/there.png"
    label.write_bytes(b"cut")
    with pytest.raises(ValueError, match="none of the photographs"):
        write_viewer(tmp_path / "out", say=said.append)
    assert "there.png: cannot be read" in said[-1] and "remove it, and predict its image again" in said[-1]
    label.unlink()
    predict_files(checkpoint, [there], tmp_path / "out", geometry=Geometry("erp"))
    assert len(data(write_viewer(tmp_path / "out").parent)["images"]) == 1
    there.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "panoda", "view", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "none of the photographs" in done.stderr
    predict_files(checkpoint, [picture(there, (40, 80))], tmp_path / "ids", ids_of="cityscapes")
    with pytest.raises(ValueError, match="predict without --ids"):
        write_viewer(tmp_path / "ids")


needs_chromium = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def picked(page: Page, x: float, y: float) -> dict[str, Any]:
    page.evaluate("panoda.picked = null")
    page.click(x, y)
    page.until("panoda.picked")
    return page.evaluate("panoda.picked")


def colour(page: Page, side: int) -> list[int]:
    """Of a pixel of the texture of a side."""
    texture = f"panoda.viewers[{side}].getConfig().panorama.getContext('2d')"
    return page.evaluate(f"[...{texture}.getImageData(5, 40, 1, 1).data]")


def pixel(page: Page, x: float, y: float) -> list[int]:
    """What is seen there, once it is drawn."""
    page.evaluate("new Promise((done) => setTimeout(done, 500))")
    image = page.send("Page.captureScreenshot")["data"]
    return list(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").getpixel((round(x), round(y))))


def shown(page: Page) -> list[str]:
    """What is pressed: side, layer."""
    pressed = "[...document.querySelectorAll('#panel [aria-pressed=true]')].map((b) => b.textContent)"
    return page.evaluate(pressed)


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_from_a_file(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    names = [entry["name"] for entry in data(out)["classes"]]
    with opened((out / "view.html").resolve().as_uri(), tmp_path) as page:
        page.until("window.panoda && panoda.ready")
        width, height = page.evaluate("[innerWidth, innerHeight - 80]")
        middle = (width * 0.6, height * 0.5)
        assert shown(page) == ["Split", "Labels"]

        found = picked(page, *middle)
        assert found["name"] == names[found["x"] * 13 // 256] and found["confidence"] == pytest.approx(0.2)
        assert page.evaluate("document.getElementById('picked').textContent").startswith(
            f"{found['name']}, 20 %"
        )
        yaw = page.evaluate("panoda.viewers[1].getYaw()")
        page.drag(middle, (middle[0] - 250, middle[1] + 20))
        page.until(f"Math.abs(panoda.viewers[1].getYaw() - {yaw}) > 10")
        page.until("panoda.viewers[0].getYaw() === panoda.viewers[1].getYaw()")  # the other side follows
        assert page.evaluate("panoda.picked.x") == found["x"]  # dragging picks nothing
        later = picked(page, *middle)
        assert later["name"] == names[later["x"] * 13 // 256] and later["x"] != found["x"]

        page.send("Emulation.setTouchEmulationEnabled", enabled=True)
        page.evaluate("panoda.picked = null")
        for kind, places in (("touchStart", [middle]), ("touchEnd", [])):
            page.send(
                "Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in places]
            )
        page.until("panoda.picked")
        assert page.evaluate("panoda.picked.x") == later["x"]

        # What is drawn: the photograph at the left, labels over it at the right, switched off class by class.
        page.key("0")
        road, plain = data(out)["classes"][0]["colour"], colour(page, 0)
        assert colour(page, 1)[:3] == road and plain[:3] != road
        page.evaluate("document.querySelector('#classes input').click()")
        assert colour(page, 1) == pytest.approx(plain, abs=2)
        # ... which reaches the screen.
        place = (width * 0.55, height * 0.5)
        page.evaluate("document.querySelector('[data-all=\"1\"]').click()")
        assert pixel(page, *place) == data(out)["classes"][picked(page, *place)["id"]]["colour"]
        page.evaluate("document.querySelector('[data-all=\"\"]').click()")
        without = pixel(page, *place)
        page.key("c")
        assert shown(page) == ["Split", "Confidence"] and pixel(page, *place) == without
        page.key(" ")
        assert shown(page) == ["Photo", "Confidence"]
        page.key(" ")
        assert shown(page) == ["Labels", "Confidence"]

        # The part lies up on the right; ahead of its middle column, 45 degrees up.
        page.key(".")
        page.until("panoda.image === 1 && panoda.ready")
        at = page.evaluate("panoda.at(45, 0)")
        assert (at["x"], at["y"], at["lon"]) == (128, 64, 90) and page.evaluate("panoda.at(0, 0)") is None
        page.key(".")
        page.until("panoda.image === 2 && panoda.ready")
        assert page.evaluate("panoda.at(0, 0)")["name"] == names[6] and not page.errors


@pytest.mark.slow
@needs_chromium
def test_before_and_after_in_a_browser(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    page_file = write_viewer(out.parent / "after", before=out)
    names = [entry["name"] for entry in data(out)["classes"]]
    with opened(page_file.resolve().as_uri(), tmp_path) as page:
        page.until("window.panoda && panoda.ready")
        width, height = page.evaluate("[innerWidth, innerHeight - 80]")
        left, right = (width * 0.45, height * 0.6), (width * 0.55, height * 0.6)
        for place, title, sure in ((left, "Before", 0.2), (right, "After", 0.4)):
            found = picked(page, *place)
            column = found["x"] * 13 // 256
            assert found["title"] == title and found["confidence"] == pytest.approx(sure)
            assert found["name"] == names[column if title == "Before" else 12 - column]
            lines = page.evaluate("document.getElementById('picked').innerText").splitlines()
            assert lines[0] == f"{title}: {found['name']}, {100 * sure:.0f} %" and len(lines) == 3

        # The line: dragged to the right, both places are before it; by keys, and back.
        yaw = page.evaluate("panoda.viewers[1].getYaw()")
        page.drag((width / 2, height * 0.8), (width * 0.7, height * 0.8))
        assert page.evaluate("panoda.split") == pytest.approx(70, abs=0.5)
        assert page.evaluate("panoda.viewers[1].getYaw()") == yaw
        assert [picked(page, *place)["title"] for place in (left, right)] == ["Before", "Before"]
        page.evaluate("document.getElementById('line').focus()")
        for key in ("Home", "ArrowRight", "ArrowRight"):
            page.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
        assert page.evaluate("panoda.split") == 6 and page.evaluate("panoda.viewers[1].getYaw()") == yaw
        assert picked(page, *left)["title"] == "After"
        page.evaluate("document.querySelector('[data-show=split]').click()")
        assert page.evaluate("panoda.split") == 50
        start, end = ({"x": width * share, "y": height * 0.8} for share in (0.5, 0.3))
        for kind, places in (("touchStart", [start]), ("touchMove", [end]), ("touchEnd", [])):
            page.send("Input.dispatchTouchEvent", type=kind, touchPoints=places)
        assert page.evaluate("panoda.split") == pytest.approx(30, abs=0.5)
        page.key(" ")
        assert shown(page) == ["Before", "Labels"] and picked(page, *right)["title"] == "Before"
        page.key(" ")
        assert shown(page) == ["After", "Labels"] and picked(page, *left)["title"] == "After"
        assert page.evaluate(
            "[...document.querySelectorAll('button')].every((b) => b.innerText || b.ariaLabel || b.title)"
        )
        assert not page.errors


@pytest.mark.slow
@needs_chromium
def test_the_report_opens_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    outputs = write_outputs(tmp_path / "outputs")
    report(outputs=outputs, params=PARAMS, provenance=PROVENANCE, out=tmp_path / "reports")
    label = np.asarray(Image.open(outputs / "evaluate/pictures/target_test-01-round1.png"))
    with opened((tmp_path / "reports/index.html").as_uri(), tmp_path / "profile", size=(390, 844)) as page:
        page.until("document.readyState === 'complete'")
        assert page.evaluate("document.documentElement.scrollWidth") == 390  # as wide as the phone
        assert page.evaluate("document.querySelector('iframe')") is None  # nothing starts by itself
        page.evaluate("document.querySelectorAll('.sample .controls button')[1].click()")
        page.until("frames.length && frames[0].panoda && frames[0].panoda.ready")
        viewer = "frames[0].panoda"
        assert page.evaluate(f"[{viewer}.image, ...{viewer}.maps]") == [
            1,
            1,
            3,
        ]  # source-only and adapted, of four
        found = page.evaluate(f"{viewer}.at(0, 10)")
        assert found["id"] == label[found["y"], found["x"]] and found["title"] == "Adapted, round 1"
        assert found["confidence"] == pytest.approx(1 - 10 * found["id"] / 255, abs=0.03)
        page.send("Input.dispatchKeyEvent", type="keyDown", key="Escape")
        page.until("!document.querySelector('dialog')")
        assert not page.errors
