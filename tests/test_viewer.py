"""The page to look around in: what it holds, and what a headless Chromium sees of it from file://."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import BROWSER, opened
from PIL import Image
from test_gpano import packet, save
from test_predict import checkpoint, picture  # noqa: F401

from panoda.deployment.predict import predict_files
from panoda.deployment.view import Geometry
from panoda.deployment.viewer_page import write_viewer

PLACED = {
    "ProjectionType": "equirectangular",
    "FullPanoWidthPixels": 1024,
    "FullPanoHeightPixels": 512,
    "CroppedAreaImageWidthPixels": 256,
    "CroppedAreaImageHeightPixels": 128,
    "CroppedAreaLeftPixels": 640,
    "CroppedAreaTopPixels": 64,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("view")
    circle = picture(folder / "</script> circle.png", (128, 256))
    part = save(folder / "part.jpg", 128, 256, xmp=packet(PLACED))
    photo = picture(folder / "photo.png", (96, 128))
    predict_files(checkpoint, [circle, part, photo], folder / "out")
    # Columns of known classes: 0 at the left, 12 at the right.
    for name, width, height in (("</script> circle", 256, 128), ("part", 256, 128), ("photo", 128, 96)):
        label = np.broadcast_to(np.arange(width) * 13 // width, (height, width)).astype(np.uint8)
        Image.fromarray(label).save(folder / "out" / "labels" / f"{Path(name).name}.png")
    write_viewer(folder / "out")
    return folder / "out"


def data(out: Path) -> Any:
    text = (out / "view.html").read_text(encoding="utf-8")
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
    assert len(circle["shares"]) == 13 and "shown 60 degrees wide" in photo["takenFor"]


def test_what_cannot_be_shown(tmp_path: Path, checkpoint: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="no predictions of images here"):
        write_viewer(tmp_path)
    gone, there = (picture(tmp_path / f"{name}.png", (40, 80)) for name in ("gone", "there"))
    predict_files(checkpoint, [gone, there], tmp_path / "out", geometry=Geometry("erp"))
    gone.unlink()
    said: list[str] = []
    write_viewer(tmp_path / "out", say=said.append)
    assert len(said) == 1 and "gone.png" in said[0] and len(data(tmp_path / "out")["images"]) == 1
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


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_in_a_browser_from_a_file(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    names = [entry["name"] for entry in data(out)["classes"]]
    with opened((out / "view.html").resolve().as_uri(), tmp_path) as page:
        page.until("window.panoda && panoda.ready")
        width, height = page.evaluate("[innerWidth, innerHeight]")
        middle = (width * 0.6, height * 0.5)

        def picked(x: float, y: float) -> dict[str, Any]:
            page.evaluate("panoda.picked = null")
            page.click(x, y)
            page.until("panoda.picked")
            return page.evaluate("panoda.picked")

        found = picked(*middle)
        assert found["name"] == names[found["x"] * 13 // 256] and 0 < found["confidence"] <= 1
        assert page.evaluate("document.getElementById('picked').textContent").startswith(found["name"])
        yaw = page.evaluate("panoda.viewer.getYaw()")
        page.drag(middle, (middle[0] - 250, middle[1] + 20))
        page.until(f"Math.abs(panoda.viewer.getYaw() - {yaw}) > 10")
        assert page.evaluate("panoda.picked.x") == found["x"]  # dragging picks nothing
        later = picked(*middle)
        assert later["name"] == names[later["x"] * 13 // 256] and later["x"] != found["x"]

        page.send("Emulation.setTouchEmulationEnabled", enabled=True)
        page.evaluate("panoda.picked = null")
        for kind, places in (("touchStart", [middle]), ("touchEnd", [])):
            page.send(
                "Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in places]
            )
        page.until("panoda.picked")
        assert page.evaluate("panoda.picked.x") == later["x"]

        # What is drawn: labels over the photograph, switched off class by class, and by the space bar.
        colour = "[...panoda.viewer.getConfig().panorama.getContext('2d').getImageData(5, 40, 1, 1).data]"
        page.key("0")
        road = data(out)["classes"][0]["colour"]
        assert page.evaluate(colour)[:3] == road
        page.key(" ")
        plain = page.evaluate(colour)
        assert plain[:3] != road and page.evaluate("panoda.mode") == "photo"
        page.key(" ")
        assert page.evaluate(colour)[:3] == road
        page.evaluate("document.querySelector('#classes input').click()")
        assert page.evaluate(colour) == pytest.approx(plain, abs=2)
        page.key("c")
        assert page.evaluate("panoda.mode") == "confidence"

        # The part lies up on the right; ahead of its middle column, 45 degrees up.
        page.key(".")
        page.until("panoda.image === 1 && panoda.ready")
        at = page.evaluate("panoda.at(45, 0)")
        assert (at["x"], at["y"], at["lon"]) == (128, 64, 90) and page.evaluate("panoda.at(0, 0)") is None
        page.key(".")
        page.until("panoda.image === 2 && panoda.ready")
        assert page.evaluate("panoda.at(0, 0)")["name"] == names[6] and not page.errors
