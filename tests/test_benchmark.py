"""The adaptation benchmark keeps its promises about looks, seeds and recipes."""

from pathlib import Path

import yaml

from benchmarks.adaptation import HERE, LOOK_SETS, known_recipes, settings
from panoda.city.looks import built_in_looks
from panoda.config import load_params
from panoda.config.scenarios import load_scenario, scenario_files

ROOT = Path(__file__).parents[1]


def _looks(name: str) -> set[str]:
    return set(yaml.safe_load((HERE / f"looks_{name}.yaml").read_text()))


def test_final_looks_appear_nowhere_in_the_scenarios_or_the_development_looks():
    final = _looks("final")
    assert final and final <= set(built_in_looks())
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


def test_every_recipe_is_valid_and_is_what_its_name_says():
    params = {name: settings(0, "final", [], recipe) for name, recipe in known_recipes().items()}
    assert {"control", "default", "default_without_prototypes", "oracle"} <= set(params)
    whole = load_params(ROOT / "params.yaml")
    assert params["default"].adapt == whole.adapt and params["default"].warmup == whole.warmup
    control, oracle, mpa = (params[name].adapt for name in ("control", "oracle", "mpa"))
    assert control.method == oracle.method == "ssl" and control.target_weight == 0 < oracle.target_weight
    assert control.iterations == oracle.iterations == whole.warmup.iterations + whole.adapt.iterations
    assert (mpa.mpa.weight, mpa.mpa.ema_momentum) == (0.001, 0.999) and mpa.adversarial_weight == 0
    assert params["alignment"].adapt.iterations == 0 == params["alignment"].warmup.colour_transfer
    assert [name for name, recipe in known_recipes().items() if recipe.get("labels")] == ["oracle"]


def test_looks_of_any_file_have_worlds_of_their_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("foggy: {haze_per_m: [0.02, 0.03]}\n")
    dataset = settings(1, str(path), []).data.target.dataset
    assert list(dataset.looks) == ["foggy"]
    others = {settings(1, looks, []).data.target.dataset.splits["test"].seed for looks in LOOK_SETS}
    assert dataset.splits["test"].seed not in others
