"""Listing folders: links followed without loops, and everything that is left out counted and named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from panoda.cli.predict import expand
from panoda.config import FolderDataset
from panoda.data.formats import browse
from panoda.data.formats.browse import images_below, left_out, walk
from panoda.stages.download import download


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Two days, one of them a link to elsewhere, and every kind of thing that is not taken."""
    panos = tree(tmp_path / "panos", "day1/a.jpg", "day1/B.JPG", "notes.txt")
    tree(tmp_path / "elsewhere", "x.jpg", "deep/y.jpg")
    (panos / "day2").symlink_to(tmp_path / "elsewhere")
    tree(panos, "day1/c.heic", "day1/d.JFIF", "day1/e.INSV", "f.360", "day1/._a.jpg", ".thumbs/e.jpg")
    (panos / "day1/gone.png").symlink_to("nowhere.png")
    (panos / "day3").symlink_to(tmp_path / "unmounted")
    (panos / "day1/self.png").symlink_to("self.png")
    (panos / "up").symlink_to("..")
    (panos / "day1/here").symlink_to(panos / "day1")
    (panos / "again").symlink_to("day1")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(panos / "pipe.png")
    return panos


TAKEN = ["day1/B.JPG", "day1/a.jpg", "day2/deep/y.jpg", "day2/x.jpg"]
LEFT = {
    browse.DANGLING: ["day1/gone.png", "day1/self.png", "day3"],
    browse.LOOP: ["day1/here", "day2/back", "up"],
    browse.AGAIN: ["again"],
    browse.SPECIAL: ["pipe.png"],
    browse.HIDDEN: [".thumbs/e.jpg", "day1/._a.jpg"],
    browse.SUFFIX: ["day1/c.heic", "day1/d.JFIF"],
    browse.FISHEYE: ["day1/e.INSV", "f.360"],
}


def test_links_are_followed_and_the_rest_is_named(days):
    found, left = images_below(days)
    assert [path.relative_to(days).as_posix() for path in found] == TAKEN
    assert {cause: sorted(names) for cause, names in left.causes.items()} == LEFT
    text = "\n".join(left.lines())
    assert f"left out: links to nothing (3): {days}/day3 points to " in text
    assert f"{days}/day1/gone.png points to nowhere.png" in text
    assert f"left out: folders that are read already by another name (1): {days}/again" in text


def test_three_examples_of_each_cause(tmp_path):
    tree(tmp_path, *(f"{n}.gif" for n in range(5)))
    (line,) = images_below(tmp_path)[1].lines()
    assert line.startswith("left out: images of a kind that is not read (expected .bmp, .jpeg")
    assert line.endswith(f" (5): {tmp_path}/0.gif, {tmp_path}/1.gif, {tmp_path}/2.gif, ...")


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    tree(tmp_path, "a/1.png", "b/2.png")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert list(walk(tmp_path)) == [("a/1.png", ""), ("b", browse.UNREADABLE)]
    assert left_out(tmp_path, lambda path: True).causes == {browse.UNREADABLE: ["b"]}
    with pytest.raises(PermissionError):
        list(walk(tmp_path / "b"))


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"gr\xfcn.png")).touch()
    found, left = images_below(tmp_path)
    assert not found and left.causes == {browse.NAME: [r"gr\udcfcn.png"]}


def test_a_link_is_read_where_the_folder_itself_does_not_lie_below(tmp_path):
    tree(tmp_path / "panos", "z/1.png")
    (tmp_path / "panos/a").symlink_to("z")
    assert [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path)[0]] == ["panos/z/1.png"]


# --- every command that lists files --------------------------------------------------------------------


def listed(dataset, out: Path) -> list[str]:
    download(role="target", dataset=dataset, out=out, progress=False)
    rows = (out / "files.csv").read_text().splitlines()[1:]
    return sorted(row.split(",")[0] for row in rows)


def test_kind_folder_and_predict_take_the_same(days, tmp_path, caplog, capsys):
    assert listed(FolderDataset(kind="folder", path=str(days)), tmp_path / "raw") == TAKEN
    said = sorted(caplog.messages)
    assert len(said) == len(LEFT)
    assert all(any(f"{cause} ({len(names)})" in line for line in said) for cause, names in LEFT.items())
    found = list(expand([str(days)], tmp_path / "out"))
    assert [path.relative_to(days).as_posix() for path in found] == TAKEN
    assert sorted(capsys.readouterr().err.splitlines()) == said


def test_what_the_patterns_of_a_folder_leave_out(tmp_path, caplog):
    tree(tmp_path / "in", "a.jpg", "B.JPG", "day/c.jpg", "day/deep/d.jpg", ".hidden/e.jpg", "f.png")

    def taken(*patterns: str) -> list[str]:
        caplog.clear()
        splits = {"train": list(patterns)}
        return listed(
            FolderDataset(kind="folder", path=str(tmp_path / "in"), splits=splits), tmp_path / "raw"
        )

    assert taken("*.jpg", "day/*") == ["B.JPG", "a.jpg", "day/c.jpg"]
    assert "left out: images that no pattern or list names (2): " in caplog.text
    assert "/day/deep/d.jpg" in caplog.text and "/f.png" in caplog.text
    assert "left out: hidden, or in a hidden folder (1): " in caplog.text
    assert taken("**/[cd].jpg", ".hidden/*") == [".hidden/e.jpg", "day/c.jpg", "day/deep/d.jpg"]
    assert taken("day/**/*.JPG") == ["day/c.jpg", "day/deep/d.jpg"]
    assert taken("**/*", ".hidden/*") == sorted(
        ["a.jpg", "B.JPG", "day/c.jpg", "day/deep/d.jpg", "f.png", ".hidden/e.jpg"]
    )
    assert not caplog.text


def test_what_prediction_wrote_is_not_taken(tmp_path, caplog, capsys):
    folder = tree(tmp_path / "in", "a.jpg", "old/overlays/a.jpg", "old/labels/a.png", "mine/labels/b.png")
    (folder / "old/manifest.json").write_text('{"failures": [], "format": "panoda-predictions-1"}')
    (folder / "mine/manifest.json").write_text("{}")
    names = ["a.jpg", "mine/labels/b.png"]
    for given in (folder, folder / "**/*.*"):
        found = expand([str(given)], tmp_path / "out")
        assert [path.relative_to(folder).as_posix() for path in found] == names
        line = f"left out: written by `panoda predict` (2): {folder}/old/labels/a.png, {folder}/old/overlays/a.jpg"
        assert capsys.readouterr().err == f"{line}\n"
    assert listed(FolderDataset(kind="folder", path=str(folder)), tmp_path / "raw") == names
    assert caplog.messages == [line]
    assert list(expand([str(folder / "old/labels")], tmp_path / "out"))  # named by hand


def test_a_pattern_names_what_it_leaves_out(tmp_path, capsys):
    folder = tree(tmp_path / "in", "a.jpg", "b.heic", "c.insv", "d.txt", "e.mp4", "sub/f.jpg")
    (folder / "gone.png").symlink_to("nowhere.png")
    found = expand([str(folder / "*")], tmp_path / "out")
    assert [path.name for path in found] == ["a.jpg", "e.mp4", "gone.png"]  # whose reason is told later
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("/")[2] for line in lines] == ["b.heic", "c.insv"]
    assert "stitched with the camera's program" in lines[1]
