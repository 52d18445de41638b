"""What to label next: uncertain and unlike, no near duplicates, the same every time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panoda.cli.app import main
from panoda.deployment.rank import choose, rank_files


def circle(*degrees: float) -> np.ndarray:
    """Vectors of length 1 at these angles."""
    angles = np.radians(degrees)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1)


def ranks(choices) -> list[int | None]:
    return [choice.rank for choice in choices]


def test_the_chosen_are_spread() -> None:
    features = circle(0, 1, 2, 90, 91, 180, 178)
    found = choose(features, np.array([0.5, 1, 0.5, 0.5, 0.6, 0.5, 0.5]), 3)
    assert ranks(found) == [None, 1, None, None, 3, 2, None]
    assert found[1].distance is None and found[5].nearest == 1
    assert found[5].distance == pytest.approx(2 * np.sin(np.radians(179) / 2))
    assert found[3].nearest == 4 and found[3].duplicate and not found[5].duplicate


def test_uncertainty_weighs_the_distance() -> None:
    features = circle(0, 60, 90)
    assert ranks(choose(features, np.array([1, 0.5, 0.5]), 2)) == [1, None, 2]
    assert ranks(choose(features, np.array([1, 0.9, 0.5]), 2)) == [1, 2, None]


def test_what_is_labelled_is_left_alone() -> None:
    features = circle(0, 90, 180)
    found = choose(features, np.array([9, 1, 1]), 3, labelled=circle(0.5, 110))
    assert ranks(found) == [None, 2, 1] and found[0].duplicate and found[0].nearest == -1
    assert found[1].nearest == -2 and not found[1].duplicate


def test_near_duplicates_are_never_chosen() -> None:
    features = circle(0, 0, 1, 180)
    found = choose(features, np.ones(4), 4)
    assert ranks(found) == [1, None, None, 2]
    assert [choice.duplicate for choice in found] == [False, True, True, False]
    assert ranks(choose(features, np.ones(4), 4, duplicate=0.0)) == [1, None, 3, 2]  # equal ones stay out
    assert choose(features[:0], np.ones(0), 1) == []


def picture(path: Path, seed: int, size: tuple[int, int] = (64, 128)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    tint = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])[seed % 4]
    small = (0.3 * small + 0.7 * tint).astype(np.uint8)
    small[:, -1] = small[:, 0]
    Image.fromarray(small).resize(size[::-1]).save(path)
    return path


def test_files(tmp_path, checkpoint) -> None:
    files = [picture(tmp_path / "in" / f"{seed}.png", seed) for seed in range(4)]
    again = tmp_path / "in" / "copy.png"
    Image.open(files[1]).save(again, compress_level=0)
    done = picture(tmp_path / "done" / "old.png", 2)
    broken = tmp_path / "in" / "broken.jpg"
    broken.touch()
    everything = [*files, again, broken]
    result = rank_files(checkpoint, everything, tmp_path / "out", count=3, labelled=[done])
    table = pd.read_csv(tmp_path / "out/chosen.csv")
    assert sorted(table.image) == sorted(map(str, everything)) and table["rank"].tolist()[:2] == [1, 2]
    assert len(result.failures) == 1 and "broken.jpg" in result.failures[0]
    reason = dict(zip(table.image, table.reason, strict=True))
    assert reason[str(files[2])] == "near duplicate of old.png, which is labelled"
    pair = {str(files[1]), str(again)}
    twice = table[table.image.isin(pair)]
    assert set(twice.duplicate_of.dropna()) < pair and twice["rank"].notna().sum() == 1
    assert "broken.jpg" in reason[str(broken)] and table["uncertainty"].dropna().between(0, 1).all()
    assert (tmp_path / "out/chosen.txt").read_text().splitlines() == list(result.chosen.image)
    with Image.open(tmp_path / "out/chosen.jpg") as sheet:
        assert sheet.width > 1000
    rank_files(checkpoint, everything, tmp_path / "again", count=3, labelled=[done])
    for name in ("chosen.csv", "chosen.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["panoda", "rank", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0, *capsys.readouterr()


def test_what_the_command_says(tmp_path, checkpoint, monkeypatch, capsys) -> None:
    for seed in range(3):
        picture(tmp_path / "in" / f"{seed}.png", seed)
    options = ["--checkpoint", checkpoint, "--out", tmp_path / "out"]
    status, out, _ = run(monkeypatch, capsys, tmp_path / "in", "--count", 5, *options)
    assert status == 0 and "3 chosen, not 5: of 3 images 0 are near duplicates" in out
    assert "  1  " in out and "the most uncertain (uncertainty 0." in out
    (tmp_path / "in/bad.png").write_bytes(b"nothing")
    status, _, error = run(
        monkeypatch, capsys, tmp_path / "in", "--labelled", tmp_path / "in/0.png", "--count", 1, *options
    )
    assert status == 1 and "bad.png: not a readable image" in error and "1 images could not be read" in error
    table = pd.read_csv(tmp_path / "out/chosen.csv")
    assert "is labelled already" in table.reason.tolist() and table["rank"].notna().sum() == 1
    arguments = ["--labelled", tmp_path / "in/0.png", *options]
    status, _, error = run(monkeypatch, capsys, tmp_path / "in/bad.png", *arguments)
    table = pd.read_csv(tmp_path / "out/chosen.csv")
    assert status == 1 and len(table) == 1 and "bad.png" in table.reason[0]
    for arguments, message in (
        (["--out", tmp_path, "--checkpoint", tmp_path], "a folder, expected a file"),
        (["--out", tmp_path / "in/0.png", "--checkpoint", checkpoint], "0.png: "),
    ):
        status, _, error = run(monkeypatch, capsys, tmp_path / "in", *arguments)
        assert status == 1 and message in error and "Errno" not in error
