"""Few labels: the ranked and the random panoramas train as one more source, at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import few_labels as bench
from panoda.data.loading.prepared import PreparedSplit

TOY = [
    *(f"data.{domain}.dataset.camera.{side}" for domain in ("source", "target") for side in ("height=32",)),
    *(f"data.{domain}.dataset.camera.width={width}" for domain, width in (("source", 64), ("target", 128))),
    *("data.source.prepare.height=32", "data.source.prepare.width=64"),
    *("data.target.prepare.height=32", "data.target.prepare.width=128"),
    *("data.source.dataset.splits.train.images=4", "data.source.dataset.splits.val.images=2"),
    *("data.target.dataset.splits.train.images=6", "data.target.dataset.splits.test.images=2"),
    *("pretrain.iterations=1", "pretrain.validate_every=1", "adapt.iterations=1"),
    *(
        f"{stage}.crop_{side}=32"
        for stage in ("pretrain.augment", "adapt.augment_source")
        for side in ("height", "width")
    ),
]


def test_a_toy_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panoda.city.dataset.cores", lambda: 1)
    options = ["--seeds", "3", "--count", "2", "--draws", "2", "--processes", "1", "--recipes", "default"]
    sets = [word for change in TOY for word in ("--set", change)]
    bench.main([*options, *sets, "--work", str(tmp_path)])
    lines = capsys.readouterr().out.partition("Looks: ")[2].splitlines()
    assert "2 labelled panoramas with weight 0.25" in lines[0]
    assert lines[2].startswith("| recipe | seed | no label | ranked | random, mean of 2 |")
    assert [line.split(" | ")[:2] for line in lines[4:6]] == [["| default", "3"], ["| default", "mean"]]
    here = tmp_path / "seed3/development"
    split = PreparedSplit(here / "few_ranked_2/few/train")
    assert len(split) == 2 and split.has_labels and split.full_circle
    ranked = (here / "ranked2/chosen.txt").read_text().split()
    assert sorted(split.ids) == sorted(Path(name).stem for name in ranked)
    results = {path.stem for path in here.glob("default*.json")}
    assert results == {"default_none", *(f"default_{c}_2_0.25" for c in ("ranked", "random0", "random1"))}
    assert 0 <= json.loads((here / "default_none.json").read_text())["target_test"]["miou"] <= 1


def test_draws_differ_and_are_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ranked:
        chosen = {"image": []}

    class Split:
        lat_top_deg, lat_bottom_deg = 35.0, -35.0

    (tmp_path / "pictures/images").mkdir(parents=True)
    for number in range(20):
        (tmp_path / f"pictures/images/{number:02d}.png").touch()
    monkeypatch.setattr(bench, "rank_files", lambda *arguments, **options: Ranked)
    monkeypatch.setattr(bench, "PreparedSplit", lambda folder: Split)
    one, two = (bench.choices(seed, tmp_path, tmp_path, 5, 3) for seed in (0, 0))
    assert one == two and one["none"] == [] and len({tuple(one[f"random{d}"]) for d in range(3)}) == 3
    assert bench.choices(1, tmp_path, tmp_path, 5, 3)["random0"] != one["random0"]
    assert all(len(set(one[f"random{d}"])) == 5 for d in range(3))
