"""The adaptation benchmark keeps its promises about looks, seeds and recipes."""

import json
from pathlib import Path

import yaml

from benchmarks.adaptation import HERE, LOOK_SETS, known_recipes, settings
from panoda.city.looks import LOOKS
from panoda.config import load_params
from panoda.config.scenarios import load_scenario, scenario_files

ROOT = Path(__file__).parents[1]


def _looks(name: str) -> set[str]:
    return set(yaml.safe_load((HERE / f"looks_{name}.yaml").read_text()))


def test_final_looks_appear_nowhere_in_the_scenarios_or_the_development_looks():
    final = _looks("final")
    assert final and final <= set(LOOKS)
    assert not final & (_looks("development") | _looks("retired"))
    folder = ROOT / "scenarios"
    for params in (load_scenario(name, folder=folder) for name in scenario_files(folder)):
        for domain in (params.data.source, params.data.target):
            assert not final & set(getattr(domain.dataset, "looks", ()))


def test_no_two_seeds_or_look_sets_share_a_target_world():
    spans = []
    for seed in range(3):
        for looks in LOOK_SETS:
            dataset = settings(seed, looks, []).data.target.dataset
            for split in dataset.splits.values():
                spans.append((split.seed, split.seed + -(-split.images // dataset.images_per_world)))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    default = load_params(ROOT / "params.yaml").data.target.dataset.splits
    assert all(s.seed < spans[0][0] for s in default.values())


def test_every_recipe_is_valid_and_the_control_and_the_published_one_are_what_they_say():
    params = {}
    for name, recipe in known_recipes().items():
        assert recipe["start"] in ("source", "warmup", "adversarial")
        overrides = [f"adapt.{k}={json.dumps(v)}" for k, v in recipe["adapt"].items()]
        params[name] = settings(0, "final", overrides).adapt
    control, published = params["control"], params["mpa"]
    assert control.target_weight == control.mpa.weight == control.class_mix == control.colour_transfer == 0
    assert control.class_colour_transfer == 0
    assert (published.mpa.weight, published.mpa.ema_momentum) == (0.001, 0.999)
    assert not published.teacher.enabled
    assert params["default"].mpa.weight > 0  # the default recipe contains MPA
    assert len({p.iterations for p in params.values()}) == 1
