from pathlib import Path

import pytest

from panoda.config import ConfigError, load_params, parse_params, read_tree

ROOT = Path(__file__).parents[1]


def test_params_yaml_is_valid_and_frozen():
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(Exception, match="frozen"):
        params.seed = 3


def test_overrides_are_yaml_and_validated():
    params = load_params(ROOT / "params.yaml", ["adapt.mpa.weight=0.5", "pseudo_labels.scales=[1.0, 2.0]"])
    assert params.adapt.mpa.weight == 0.5
    assert params.pseudo_labels.scales == (1.0, 2.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapt.iteratons=5", "adapt.iteratons: Extra inputs are not permitted"),
        ("model.drop_path=2", r"model.drop_path: .*less than or equal to 1 \(found 2\)"),
        ("label_space=cs18", "unknown; known: cs19"),
        ("seed.deeper=1", "is not a section"),
        ("no-equals-sign", "expected section.key=value"),
        ("sources.synpass=1", r"sources weighs source, synpass; .*nothing else: source"),
        ("sources.source=0", "sources.source: .*greater than 0"),
        ("data.source.folder=here", "data.source.folder is 'here'; it must be 'source'"),
        ("data.sorce.folder=sorce", "data.sorce.dataset: Field required"),
        ("data.source.prepare.limit={tset: 3}", "prepare.limit names tset, but the data set has train, val"),
        ("adapt.teacher.enabled=false", "keep: teacher needs teacher.enabled"),
    ],
)
def test_mistakes_are_named(override, message):
    tree_overrides = [override, "adapt.keep=teacher"] if "teacher" in override else [override]
    with pytest.raises(ConfigError, match=message):
        load_params(ROOT / "params.yaml", tree_overrides)


def test_splits_must_not_share_worlds():
    tree = read_tree(ROOT / "params.yaml")
    splits = tree["data"]["source"]["dataset"]["splits"]
    splits["val"]["seed"] = splits["train"]["seed"] + 1
    with pytest.raises(ConfigError, match="share world seed"):
        parse_params(tree)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_params(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_params(tmp_path / "list.yaml")
