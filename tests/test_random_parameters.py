"""Every stage from preprocess to evaluate runs with any parameters that are not refused before the first.

What is refused, and with which words, is in test_config.py and test_runnable.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from random_parameters import ALONE, accepted, differences, draw, run, smallest

from panoda.config import parse_params
from panoda.pipeline.table import flatten

SEEDS = (15, 23, 39, 67, 88, 135)
"""Among them: two sources, whole circles that wrap, target crops on the sphere, both half precisions, views."""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_stage_runs_with_what_is_not_refused(seed: int, tmp_path: Path) -> None:
    run(accepted(seed), tmp_path)
    scores = json.loads((tmp_path / "evaluate/metrics.json").read_text(encoding="utf-8"))
    assert {"source_only", "warmup", "round1"} <= set(scores)


def test_the_smallest_city_is_valid_and_every_parameter_is_drawn() -> None:
    usual = flatten(parse_params(smallest()).model_dump(mode="json"))
    changed = {line.partition("=")[0] for seed in range(200) for line in differences(draw(seed), smallest())}
    left = {
        key
        for key in usual
        if not any(
            key == name or f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in changed
        )
        and not set(key.split(".")) & set(ALONE)
    }
    # A source without labels is refused where it is drawn.
    assert left == {f"data.source.dataset.splits.{split}.labels" for split in ("train", "val")}
