import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from panoda.config import EvaluateParams
from panoda.data.formats.dataset import RawItem
from panoda.data.prepare.prepare import prepare
from panoda.evaluation import pieces as evaluate_pieces
from panoda.models import create_model
from panoda.models.core.checkpoint import make_card, save_model
from panoda.pipeline.table import flatten
from panoda.stages.evaluate import evaluate
from panoda.system.context import MetricLogger, RunContext


class Recorder(MetricLogger):
    def __init__(self):
        self.params, self.metrics, self.images, self.figures = {}, [], {}, []

    def log_metrics(self, metrics, step):
        self.metrics.append((step, dict(metrics)))

    def log_params(self, params):
        self.params = params

    def log_image(self, key, image, step):
        self.images[key] = image

    def log_figure(self, name, figure):
        self.figures.append(name)

    def log_artifact(self, path):
        raise AssertionError("evaluate logs no files; the flow does")


def make_split(root: Path, role: str, split: str, *, projection, labelled=True, groups=("",)):
    """A prepared split of random images, 32 x 64."""
    generator = np.random.default_rng(0)
    items = []
    for i in range(3):
        image, label = root / f"{role}{i}.png", root / f"{role}{i}_label.png"
        Image.fromarray(generator.integers(0, 256, (32, 64, 3), dtype=np.uint8)).save(image)
        Image.fromarray(generator.integers(0, 10, (32, 64), dtype=np.uint8)).save(label)
        erp = projection == "erp"
        items.append(
            RawItem(
                id=str(i),
                split=split,
                group=groups[i % len(groups)],
                image=image,
                label=label if labelled else None,
                projection=projection,
                fov_x_deg=360.0 if erp else 60.0,
                lat_top_deg=35.0 if erp else float("nan"),
                lat_bottom_deg=-35.0 if erp else float("nan"),
            )
        )
    prepare(
        items,
        root / role,
        height=32,
        width=64,
        label_space_from="camvid11" if labelled else None,
        label_space_to="cs13",
        shard_images=8,
        progress=False,
    )
    return root / role / split


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    models = {}
    for seed, name in enumerate(("source_only", "round1")):
        torch.manual_seed(seed)
        model = create_model("trans4pass_nano", num_classes=13)
        models[name] = root / f"{name}.safetensors"
        save_model(models[name], model, make_card(model, label_space="cs13", stage=name, seed=seed))
    return {
        "models": models,
        "source_val": make_split(root, "source", "val", projection="pinhole"),
        "target_test": make_split(root, "target", "test", projection="erp", groups=("fog", "rain")),
        "unlabelled": make_split(root, "plain", "test", projection="erp", labelled=False),
    }


def run(inputs, out, *, target="target_test", **params):
    logger = Recorder()
    flat = evaluate(
        models=inputs["models"],
        source_val=inputs["source_val"],
        target_test=inputs[target] if target else None,
        out=out,
        params=EvaluateParams(**{"pictures": 2, "latitude_bands": 3, **params}),
        context=RunContext(logger=logger),
    )
    return flat, logger


def test_writes_everything_the_report_and_dvc_read(inputs, tmp_path):
    out = tmp_path / "evaluate"
    flat, logger = run(inputs, out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == ["round1", "source_only"]
    scores = metrics["round1"]["target_test"]
    assert scores["miou"] == pytest.approx(np.mean(list(scores["iou"].values())))
    # CamVid reaches 10 of the 13 classes: wall, traffic light and terrain are not shared.
    assert {"miou_shared", "miou_solid_angle"} <= set(scores) and "wall" not in scores["iou"]
    assert "miou_solid_angle" not in metrics["round1"]["source_val"]
    assert flat["miou/target_test"] == flat["round1/miou/target_test"] == scores["miou"]
    assert flat["source_only/iou/source_val/road"] == metrics["source_only"]["source_val"]["iou"]["road"]
    per_class = pd.read_csv(out / "per_class.csv")
    assert len(per_class) == 2 * 2 * 13 and per_class["predicted_pixels"].sum() == 4 * 3 * 32 * 64
    latitude, azimuth = pd.read_csv(out / "by_latitude.csv"), pd.read_csv(out / "by_azimuth.csv")
    assert set(latitude["set"]) == {"target_test"} and len(latitude) == 2 * 3 and len(azimuth) == 2 * 8
    confusion = pd.read_csv(out / "confusion_round1_target_test.csv", index_col="label")
    assert confusion.shape == (13, 13) and confusion.to_numpy().sum() == latitude["pixels"].sum() / 2
    told = json.loads((out / "headlines.json").read_text())
    assert told["miou"]["target_test"] == {m: metrics[m]["target_test"]["miou"] for m in metrics}
    before = metrics["source_only"]["source_val"]["miou"]
    assert told["gain"]["source_val"] == metrics["round1"]["source_val"]["miou"] - before
    eight = per_class[(per_class.model == "round1") & (per_class.set == "target_test")]
    eight = eight.sort_values("label_pixels", ascending=False)[:8]
    assert told["miou_frequent"]["target_test"] == pytest.approx(eight.iou.mean(), abs=1e-5)
    assert len(flatten(told)) <= 12
    (step, first), (last_step, last) = logger.metrics
    assert (step, last_step) == (0, 1) and first["miou/target_test"] == flat["source_only/miou/target_test"]
    assert last["images_per_second"] > 0 and "iou/target_test/road" in last


def test_groups_and_remaps_are_written(inputs, tmp_path):
    run(inputs, tmp_path / "evaluate", pictures=0)
    table = pd.read_csv(tmp_path / "evaluate/by_group.csv")
    # Source val is one group, so there is nothing to compare.
    assert set(table["set"]) == {"target_test"} and table["group"].tolist() == 2 * ["fog", "rain"]
    assert table["images"].tolist() == 2 * [2, 1] and table["pixels"].sum() == 2 * 3 * 32 * 64
    sets = json.loads((tmp_path / "evaluate/sets.json").read_text())
    assert sets["source_val"]["raw_label_space"] == "camvid11"
    # make_split draws the same images for every role.
    assert [sets[name]["images_in_source_val"] for name in ("source_val", "target_test")] == [0, 3]
    assert sets["source_val"]["remap"] == {
        "dropped": ["bicyclist"],
        "merged": {},
        "empty": ["wall", "traffic light", "terrain"],
    }


def test_a_passed_on_model_is_not_evaluated_twice(inputs, tmp_path, monkeypatch):
    calls = []
    counted = evaluate_pieces.evaluate_model
    monkeypatch.setattr(
        evaluate_pieces, "evaluate_model", lambda *a, **k: calls.append(1) or counted(*a, **k)
    )
    same = {
        **inputs["models"],
        "warmup": inputs["models"]["round1"],
        "round2": inputs["models"]["source_only"],
    }
    flat, _ = run({**inputs, "models": same}, tmp_path / "evaluate")
    assert len(calls) == 3 * 2  # warmup is round1; round2 is not the model before it
    about = json.loads((tmp_path / "evaluate/models.json").read_text())
    assert {name for name, one in about.items() if one["same_weights_as"]} == {"warmup"}
    assert about["warmup"]["same_weights_as"] == "round1"
    assert flat["warmup/miou/target_test"] == flat["round1/miou/target_test"]
    assert (tmp_path / "evaluate/pictures/target_test-00-warmup.png").is_file()


def test_pictures_pair_up_and_show_train_ids(inputs, tmp_path):
    out = tmp_path / "evaluate"
    _, logger = run(inputs, out)
    names = {p.name for p in (out / "pictures").iterdir()}
    assert len(names) == 2 * 2 * 6
    for what in ("input", "truth", *(m + n for m in ("source_only", "round1") for n in ("", "_confidence"))):
        assert f"target_test-01-{what}.png" in names
    sets = json.loads((out / "sets.json").read_text())
    assert sets["target_test"]["sphere"] == {"fov_x_deg": 360, "lat_top_deg": 35, "lat_bottom_deg": -35}
    assert sets["source_val"]["sphere"] is None
    ids = np.asarray(Image.open(out / "pictures" / "target_test-00-round1.png"))
    assert ids.shape == (32, 64) and ids.max() < 13
    assert logger.images["pictures/target_test/00"].shape == (4 * 32, 64, 3)


def test_unlabelled_target_gives_pictures_and_statistics_only(inputs, tmp_path):
    out = tmp_path / "evaluate"
    flat, _ = run(inputs, out, target="unlabelled")
    sets = json.loads((out / "sets.json").read_text())
    assert not sets["target_test"]["labelled"] and "have no labels" in sets["target_test"]["note"]
    scores = json.loads((out / "metrics.json").read_text())["round1"]["target_test"]
    assert "miou" not in scores and sum(scores["predicted_share"].values()) == pytest.approx(1)
    assert "miou/target_test" not in flat and 0 < flat["mean_confidence/target_test"] <= 1
    assert (out / "pictures" / "target_test-00-round1.png").exists()
    assert not (out / "pictures" / "target_test-00-truth.png").exists()
    assert (
        pd.read_csv(out / "by_azimuth.csv").empty and not (out / "confusion_round1_target_test.csv").exists()
    )


def test_without_target_set_it_says_so(inputs, tmp_path):
    out = tmp_path / "evaluate"
    run(inputs, out, target=None, pictures=0)
    assert "there is no target test set" in json.loads((out / "sets.json").read_text())["target_test"]["note"]
    assert not list((out / "pictures").iterdir())


def test_same_inputs_same_files(inputs, tmp_path):
    outs = [tmp_path / name for name in "ab"]
    for out in outs:
        run(inputs, out)
    files = sorted(p.relative_to(outs[0]) for p in outs[0].rglob("*") if p.is_file())
    assert files and all((outs[0] / f).read_bytes() == (outs[1] / f).read_bytes() for f in files)


def test_an_error_leaves_the_old_result(inputs, tmp_path):
    out = tmp_path / "evaluate"
    out.mkdir()
    (out / "old").write_text("kept")
    broken = {**inputs, "models": {"source_only": tmp_path / "none.safetensors"}}
    with pytest.raises(ValueError, match=r"none\.safetensors"):
        run(broken, out)
    assert [p.name for p in tmp_path.iterdir()] == ["evaluate"] and (out / "old").exists()


def test_unlabelled_source_is_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match="the source has no labels"):
        run({**inputs, "source_val": inputs["unlabelled"]}, tmp_path / "evaluate")


def test_perspective_views_are_of_the_target_alone(inputs, tmp_path, monkeypatch):
    from panoda.inference import prediction

    seen, whole = [], prediction.over_views

    def spy(images, function, views, **band):
        seen.append((len(images), views.pitches, views.share))
        return whole(images, function, views, **band)

    monkeypatch.setattr(prediction, "over_views", spy)
    run(inputs, tmp_path / "out", views={"pitches": [0.0, -20.0], "share": 1.0}, pictures=0)
    assert {found[1:] for found in seen} == {((0.0, -20.0), 1.0)}
    seen.clear()
    run({**inputs, "target_test": None}, tmp_path / "source", views={}, pictures=0)
    assert not seen


def test_sliding_windows_reach_the_model(inputs, tmp_path, monkeypatch):
    from panoda.inference import prediction as inference

    seen = []

    def spy(model, x, sliding, **options):
        seen.append(sliding)
        return model(x)

    monkeypatch.setattr(inference, "slide", spy)
    run(inputs, tmp_path / "out", sliding={"window": 64, "stride": 48}, pictures=0)
    assert set(seen) == {(64, 48)}
    with pytest.raises(ValueError, match="stride 65 leaves gaps between windows of 64"):
        EvaluateParams(sliding={"window": 64, "stride": 65})
