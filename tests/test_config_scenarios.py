"""Scenarios resolve to whole trees of parameters, and are written out as whole files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from panoda.cli import app as cli
from panoda.config import ConfigError, load_params
from panoda.config.scenarios import Scenario, load_scenario, open_scenario, scenario_files
from panoda.pipeline.table import flatten

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scenarios"
SCENARIOS = sorted(scenario_files(FOLDER))
# Every scenario's tree, with dotted keys: what is the same in most of them, and what each has of its own.
TREES = json.loads((ROOT / "tests" / "scenario_trees.json").read_text(encoding="utf-8"))
FREE = (".looks.", ".splits.", ".limit.", "sources.")
"""Keys that are names of somebody's own."""


def test_every_scenario_has_a_known_tree() -> None:
    assert SCENARIOS == sorted(TREES["scenarios"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_has_the_values_it_always_had(name: str) -> None:
    """A parameter that is new may be missing in the known tree; the default is then its value everywhere."""
    expected = TREES["common"] | TREES["scenarios"][name]
    found = flatten(load_scenario(name, folder=FOLDER).model_dump(mode="json"))
    different = {
        key: f"{found.get(key, 'missing')!r} instead of {value!r}"
        for key, value in expected.items()
        if key not in found or found[key] != value
    }
    assert not different
    named = [sorted(key for key in tree if any(part in key for part in FREE)) for tree in (expected, found)]
    assert named[0] == named[1]
    # Worlds cycle through the looks in their order.
    looks = [[key for key in tree if ".looks." in key] for tree in (expected, found)]
    assert looks[0] == looks[1]


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_written_is_whole_and_reads_back(name: str, tmp_path: Path) -> None:
    written = tmp_path / "params.yaml"
    written.write_text(open_scenario(name, folder=FOLDER).text(), encoding="utf-8")
    params = load_params(written)
    assert params == load_scenario(name, folder=FOLDER)
    assert params.scenario == params.tracking.experiment == name
    # DVC reads the file itself: it knows no defaults and sets (-S) only what is written there.
    tree = yaml.safe_load(written.read_text(encoding="utf-8"))
    assert flatten(tree) == flatten(params.model_dump(mode="json"))
    assert {"train", "val"} <= set(params.data.source.dataset.splits)
    assert {"train", "test"} <= set(params.data.target.dataset.splits)


def test_a_fresh_clone_has_the_city_scenario() -> None:
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == open_scenario("city", folder=FOLDER).text()


# --- overlays ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FOLDER, tmp_path / "scenarios")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def overlay(text: str, name: str = "mine.yaml") -> Scenario:
    Path(name).write_text(text, encoding="utf-8")
    return open_scenario(name)


def test_sections_merge_lists_replace_and_null_sets_null(project: Path) -> None:
    mine = overlay(
        "extends: setr_pup_camvid\n"
        "pretrain: {optim: {lr: 0.5}, swa: null}\n"
        "model: {auxiliary_weights: [0.1, 0.1]}\n"
        "warmup: {}\n"
    ).params()
    base = load_scenario("setr_pup_camvid")
    optim = base.pretrain.optim.model_copy(update={"lr": 0.5})
    assert base.pretrain.swa and mine.pretrain == base.pretrain.model_copy(
        update={"optim": optim, "swa": None}
    )
    assert mine.model.auxiliary_weights == (0.1, 0.1) and mine.warmup == base.warmup
    assert (mine.scenario, mine.tracking.experiment) == ("mine", "mine")
    named = overlay("extends: city\nscenario: other\ntracking: {experiment: shared}\n").params()
    assert (named.scenario, named.tracking.experiment) == ("other", "shared")


def test_a_data_set_that_names_its_kind_replaces_the_whole(project: Path) -> None:
    source = "data: {source: {dataset: {%s}}}"
    kept = overlay("extends: city\n" + source % "splits: {train: {images: 8}}").params().data.source
    assert kept.dataset.splits["train"].images == 8 and set(kept.dataset.splits) == {"train", "val"}
    new = (
        overlay("extends: city\n" + source % "kind: stanford2d3d, path: photos, variant: pinhole")
        .params()
        .data.source
    )
    assert (new.dataset.kind, new.dataset.path, new.prepare.width) == ("stanford2d3d", "photos", 256)


def test_comments_stay_with_their_values(project: Path) -> None:
    Path("scenarios/one.yaml").write_text(
        "# Of the base alone.\nextends: city\nadapt:\n  # Many.\n  iterations: 700  # Measured.\n"
        "  # A quarter.\n  threshold: 0.25\n",
        encoding="utf-8",
    )
    base = open_scenario("one").text()
    assert "# Of the base alone.\n# Written by `panoda scenario one`." in base
    assert "  # Many.\n  # Measured.\n  iterations: 700\n" in base
    assert "  # A quarter.\n  threshold: 0.25\n" in base
    mine = overlay(
        "# Mine.\n\nextends: one\nadapt:\n  iterations: 5\n  augment_target:\n    hflip: 0.25 # Half.\n"
    ).text()
    assert mine.startswith("# Mine.\n# Written by `panoda scenario mine.yaml`.")
    assert "Measured" not in mine and "Many" not in mine and "Of the base" not in mine
    assert "# A quarter.\n" in mine
    assert "    # Half.\n    hflip: 0.25\n    yaw_roll: true\n" in mine


def test_without_a_base_the_rest_are_defaults(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml: .*problem\(s\)\n(.*\n)*.*adapt: Field required"):
        overlay("label_space: cs19\n").params()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: citty\n",
            r"mine.yaml: extends: no scenario 'citty'; did you mean city\? There are ade20k",
        ),
        ("extends: [city]\n", r"mine.yaml: extends: expected the name of one scenario, found \['city'\]"),
        (
            "extends: city\nadapt: {iteratons: 5}\n",
            r"mine.yaml \(extends city\): .*\n  adapt.iteratons: unknown; did you mean iterations\?",
        ),
        ("extends: one\n", r"one.yaml: extends goes in a circle: mine -> one -> two -> one"),
        ("- city\n", "mine.yaml: expected a mapping of sections, found list"),
    ],
)
def test_mistakes_in_scenarios_are_named(project: Path, text: str, message: str) -> None:
    Path("scenarios/one.yaml").write_text("extends: two\n", encoding="utf-8")
    Path("scenarios/two.yaml").write_text("extends: one\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        overlay(text).params()


# --- the command ---------------------------------------------------------------------------------------


def panoda(*arguments: str) -> str:
    """What the command prints; its error is raised."""
    result = CliRunner().invoke(cli.app, ["scenario", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_writes_named_scenarios_and_files(project: Path) -> None:
    assert "params.yaml is now scenario city_small" in panoda("city_small")
    assert load_params() == load_scenario("city_small")
    Path("own").mkdir()
    mine = Path("own/mine.yaml")
    mine.write_text("extends: city\nadapt: {iterations: 7}\n", encoding="utf-8")
    panoda("own/mine.yaml")
    assert load_params().adapt.iterations == 7
    # Nobody edited what the command wrote, though it is no named scenario: it may be written again.
    mine.write_text("extends: city\nadapt: {iterations: 8}\n", encoding="utf-8")
    panoda("own/mine.yaml")
    assert load_params().adapt.iterations == 8
    with pytest.raises(ConfigError, match="no scenario 'citi'; did you mean city"):
        panoda("citi")
    with pytest.raises(ConfigError, match="nowhere.yaml: no such file"):
        panoda("nowhere.yaml")


def test_values_of_a_scenario_may_be_set(project: Path) -> None:
    panoda("city_small", "--set", "adapt.iterations=9", "--set", "data.target.folder=target")
    expected = load_scenario("city_small", ["adapt.iterations=9"])
    assert load_params() == expected and expected.adapt.iterations == 9
    panoda("city_small")  # nobody edited what was set on the command line
    with pytest.raises(ConfigError, match="adapt.iteration: unknown; did you mean iterations"):
        panoda("city_small", "--set", "adapt.iteration=9")


def test_an_edited_params_file_is_not_replaced(project: Path) -> None:
    panoda("city")
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("iterations: 480", "iterations: 321"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"differs from every scenario.*--force"):
        panoda("city_small")
    assert load_params().adapt.iterations == 321
    panoda("city_small", "--force")
    # Only its comments and order differ from the scenario: nothing is lost.
    tree = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    panoda("city")


def test_params_yaml_cannot_extend(project: Path) -> None:
    Path("params.yaml").write_text("extends: city\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="params.yaml: extends is for scenario files.*panoda scenario"):
        load_params()
