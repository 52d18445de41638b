import re
from pathlib import Path

import pytest

from panoda.config import ConfigError, ModelParams, load_params, parse_params, read_tree
from panoda.config.training import ENCODERS
from panoda.models.core.decoders import DECODERS, decoder_class
from panoda.models.core.registry import PUBLISHED
from panoda.models.encoders.factory import encoder_names

ROOT = Path(__file__).parents[1]


def test_params_yaml_is_valid_and_frozen():
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(Exception, match="frozen"):
        params.seed = 3


def test_overrides_are_yaml_and_validated():
    params = load_params(ROOT / "params.yaml", ["adapt.class_mix=0.25", "pseudo_labels.scales=[1.0, 2.0]"])
    assert params.adapt.class_mix == 0.25
    assert params.pseudo_labels.scales == (1.0, 2.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapt.iteratons=5", r"  adapt.iteratons: unknown; did you mean iterations\? \(found 5\)"),
        ("data.source.dataset.camera.hieght=5", r"dataset.camera.hieght: unknown; did you mean height\?"),
        ("data.target.dataset.xyzzy=5", "dataset.xyzzy: unknown; expected kind, path, camera, looks"),
        (
            "data.target.dataset.looks.southern={noize: 1}",
            r"looks.southern.noize: unknown; did you mean noise\?",
        ),
        ("data.target.dataset.kind=folderr", "data.target.dataset: Input tag 'folderr' .*'structured3d'$"),
        ("evaluate.scales=[]", "evaluate.scales: expected at least one scale"),
        ("pretrain.optim.lr=.inf", r"pretrain.optim.lr: .*finite number \(found inf\)"),
        ("pretrain.augment.scale=[1.5, 0.5]", r"scale is \[1.5, 0.5\]; expected \[smallest, largest\]"),
        ("model.drop_path=2", r"model.drop_path: .*less than or equal to 1 \(found 2\)"),
        ("pretrain.log_every=5", "pretrain.log_every: unknown; did you mean validate_every"),
        ("label_space=cs18", "unknown; known: cs19"),
        ("seed.deeper=1", "is not a section"),
        ("no-equals-sign", "expected section.key=value"),
        ("sources.synpass=1", r"sources weighs source, synpass; .*nothing else: source"),
        ("sources.source=0", "sources.source: .*greater than 0"),
        ("data.source.folder=here", "data.source.folder is 'here'; it must be 'source'"),
        ("data.sorce.folder=sorce", "data.sorce.dataset: Field required"),
        ("data.source.prepare.limit={tset: 3}", "prepare.limit names tset, but the data set has train, val"),
        ("adapt.method=mpaa", "adapt: .*'mpaa'"),
        (
            "adapt.augment_target.crop_height=24",
            "a crop of 24 x 0 pixels .* is too small; the models need 32",
        ),
        ("data.target.prepare.height=16", "data.target.prepare.height: .*greater than or equal to 32"),
        ("data.target.prepare.width=4096", "prepare wants 96 x 4096 pixels .* of the camera's 96 x 512"),
        ("data.source.dataset.splits.val.labels=false", "data.source.dataset has no labels for split val"),
        ("data.source.dataset.splits={train: {images: 1, seed: 1}}", "need train and val of a source"),
        ("data.target.dataset.splits={train: {images: 1, seed: 1}}", "need train and test of the target"),
        (
            "runtime.devices=3",
            "pretrain.batch_size 4 does not divide by runtime.devices 3 times accumulate 1",
        ),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_params(ROOT / "params.yaml", [override])


def test_the_method_alone_may_change():
    """What both methods know stays; what the other has takes its defaults."""
    for name in ("ssl", "mpa"):
        params = load_params(ROOT / "params.yaml", [f"adapt.method={name}", "adapt.iterations=7"]).adapt
        assert (params.method, params.iterations, params.optim.clip_norm) == (name, 7, 5.0)
        assert not hasattr(params, "class_mix")
    with pytest.raises(ConfigError, match="adapt.clas_mix: unknown"):
        load_params(ROOT / "params.yaml", ["adapt.clas_mix=0.5"])


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", "", " a", "a\\b", "a\nb", "x" * 101])
def test_names_that_mlflow_or_a_folder_cannot_take(name):
    tree = read_tree(ROOT / "params.yaml")
    with pytest.raises(ConfigError, match="scenario: .*names files and folders"):
        parse_params({**tree, "scenario": name})
    tree["data"]["target"]["dataset"]["splits"][name] = {"images": 1, "seed": 99, "labels": True}
    with pytest.raises(ConfigError, match="data.target: .*names files and folders"):
        parse_params(tree)
    assert (
        parse_params({**read_tree(ROOT / "params.yaml"), "scenario": "Köln, day (2)"}).scenario
        == "Köln, day (2)"
    )


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
    (tmp_path / "twice.yaml").write_text("a: {b: 1}\nc:\n  d: 1\n  d: 2\n")
    with pytest.raises(ConfigError, match=r"d stands here twice; remove one\n.*line 4"):
        load_params(tmp_path / "twice.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_params(tmp_path / "bytes.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_params(tmp_path / "list.yaml")


def test_a_plain_folder_has_its_upper_edge_above_the_lower_one():
    wrong = "data.target.dataset={kind: folder, path: here, lat_top_deg: -35, lat_bottom_deg: 35}"
    with pytest.raises(ConfigError, match="data.target.dataset: lat_top_deg must lie above lat_bottom_deg"):
        load_params(ROOT / "params.yaml", [wrong])


def test_model_names_are_those_of_the_registry() -> None:
    known = {*encoder_names(), *PUBLISHED}
    assert set(ENCODERS) == known and all(decoder_class(name).name == name for name in DECODERS)
    for name in (*known, "vit:vit_tiny_patch16_224", "timm:convnext_atto"):
        assert ModelParams(encoder=name).encoder == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encoder=trans4pas_t", "unknown encoder 'trans4pas_t'; did you mean trans4pass_t"),
        ("model.encoder=resnet50", "unknown encoder 'resnet50'; Expected trans4pass_"),
        ("model.encoder='vit:'", "unknown encoder 'vit:'"),
        ("model.decoder=dmlp2", "model.decoder: unknown decoder 'dmlp2'; did you mean dmlpv2?"),
    ],
)
def test_a_wrong_model_name_is_told_before_anything_is_downloaded(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_params(ROOT / "params.yaml", [override])


def test_sources_of_several_sizes_need_crops():
    tree = read_tree(ROOT / "params.yaml")
    tree["data"]["more"] = {**tree["data"]["source"], "folder": "more_sources/more"}
    tree["data"]["more"]["prepare"] = {"height": 128, "width": 192}
    tree["sources"]["more"] = 1.0
    tree["warmup"]["iterations"] = 1
    parse_params(tree)
    tree["warmup"]["augment_source"]["crop_width"] = 0
    with pytest.raises(
        ConfigError, match="warmup.augment_source.crop_width is 0 .*widths of 192 and 256 pixels"
    ):
        parse_params(tree)
    tree["warmup"]["iterations"] = 0
    parse_params(tree)


def test_a_folder_cut_to_nothing():
    shares = "crop_top: 0.5, crop_bottom: 0.5"
    text = f"data.target.dataset={{kind: folder, path: x, splits: {{train: [a], test: [b]}}, {shares}}}"
    with pytest.raises(ConfigError, match="crop_top and crop_bottom leave nothing"):
        load_params(ROOT / "params.yaml", [text])
