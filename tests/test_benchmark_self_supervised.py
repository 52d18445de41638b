"""The comparison of starts keeps its promises: one ViT, the same steps afterwards, worlds of its own per seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import self_supervised as bench
from panoda.pipeline.runnable import check_runnable


@pytest.mark.parametrize("decoder", bench.DECODERS)
def test_only_the_start_differs(decoder: str) -> None:
    found = {start: bench.settings(1, decoder, start, []) for start in bench.STARTS}
    for params in found.values():
        check_runnable(params)
    later = {params.model_copy(update={"ssl": None}).model_dump_json() for params in found.values()}
    assert len(later) == 1
    assert [params.ssl.method for params in found.values()] == ["none", "mae", "mae", "beit", "none"]
    assert dict(found["mae_target"].ssl.images) == {"target": 1.0}
    same = [found[name].ssl for name in ("mae_target", "mae_both")]
    assert same[0].model_copy(update={"images": same[1].images}) == same[1]


def test_no_two_seeds_share_a_world() -> None:
    spans = []
    for seed in range(3):
        data = bench.settings(seed, "setr_pup", "random", []).data
        for domain in (data.source, data.target):
            for split in domain.dataset.splits.values():
                spans.append((split.seed, split.seed + split.images))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_the_table(tmp_path: Path) -> None:
    for seed in (0, 1):
        for start, score, steps in (("random", 0.2, 20), ("mae_both", 0.3, 10)):
            folder = tmp_path / f"seed{seed}/setr_pup/{start}"
            folder.mkdir(parents=True)
            curve = [[steps, score], [40, score]]
            scores = {"source_val": score, "source_only": score, "adapted": score + seed / 10}
            (folder / "scores.json").write_text(json.dumps({**scores, "curve": curve, "seconds": 1.0}))
    lines = bench.table(tmp_path, [0, 1], ["setr_pup"], ["random", "mae_both"]).splitlines()
    assert "| setr_pup | mae_both | 30.0 +- 0.0 | 10.0 +- 0.0 | 35.0 +- 5.0 | 10.0 +- 0.0 |" in lines[-1]
    assert "10, 10" in lines[-1]
    assert bench.first_step([[1, 0.1]], [[1, 0.2]]) is None
