"""Scenarios resolve to whole trees of parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from panoda.config import load_params
from panoda.pipeline import flatten

ROOT = Path(__file__).resolve().parents[1]
SCENARIOS = sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml"))
# Every scenario's tree, with dotted keys: what is the same in most of them, and what each has of its own.
TREES = json.loads((ROOT / "tests" / "scenario_trees.json").read_text(encoding="utf-8"))


def resolved(name: str) -> dict[str, Any]:
    return flatten(load_params(ROOT / "scenarios" / f"{name}.yaml").model_dump(mode="json"))


def test_every_scenario_has_a_known_tree() -> None:
    assert SCENARIOS == sorted(TREES["scenarios"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_has_the_values_it_always_had(name: str) -> None:
    """A parameter that is new may be missing in the known tree; the default is then its value everywhere."""
    expected, found = TREES["common"] | TREES["scenarios"][name], resolved(name)
    different = {
        key: f"{found.get(key, 'missing')!r} instead of {value!r}"
        for key, value in expected.items()
        if key not in found or found[key] != value
    }
    assert not different
    # Worlds cycle through the looks in their order.
    looks = [[key for key in tree if ".looks." in key] for tree in (expected, found)]
    assert looks[0] == looks[1]
