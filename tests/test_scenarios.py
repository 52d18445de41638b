"""The scenarios of published settings: their data sections, on miniature trees of the data sets they name."""

from __future__ import annotations

from pathlib import Path

import miniature
import numpy as np
import pytest
import torch
import yaml
from data_project import declare

from panoda.config.scenarios import load_scenario
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.optim import parameter_groups
from panoda.labels import get_label_space, remap_report
from panoda.models import create_model
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.system.context import RunContext

SCENARIOS = Path(__file__).parents[1] / "scenarios"
SIZES = {  # (source, target, further sources), height before width, as in the papers
    "cs2dp": ((512, 1024), (400, 2048)),
    "cs13_dp13": ((512, 1024), (400, 2048)),
    "sp13_dp13": ((1024, 2048), (400, 2048)),
    "cs13_sp13_dp13": ((512, 1024), (400, 2048), (512, 1024)),
    "spin2span": ((1080, 1080), (1024, 2048)),
    "spin2span8": ((1080, 1080), (1024, 2048)),
    "s3d8_span8": ((512, 1024), (1024, 2048)),
    "synpass_supervised": ((1024, 2048), (1024, 2048)),
    "span_supervised": ((1024, 2048), (1024, 2048)),
    "camvid_supervised": ((360, 480), (360, 480)),
    "ade20k_supervised": ((512, 683), (512, 683)),
    "cvrg_supervised": ((512, 1024), (512, 1024)),
    "setr_pup_camvid": ((360, 480), (360, 480)),
    "setr_pup_camvid_small": ((192, 256), (192, 256)),
}
CLASSES = {
    "cs2dp": 19,
    "cs13_dp13": 13,
    "sp13_dp13": 13,
    "cs13_sp13_dp13": 13,
    "spin2span": 13,
    "spin2span8": 8,
    "s3d8_span8": 8,
    "synpass_supervised": 22,
    "span_supervised": 13,
    "camvid_supervised": 11,
    "ade20k_supervised": 150,
    "cvrg_supervised": 19,
    "setr_pup_camvid": 11,
    "setr_pup_camvid_small": 11,
}
# Another model on the data of a scenario, with its warm-up and adaptation: (of which, learning rates)
MODELS = {
    "trans4pass_plus_cs13_dp13": ("cs13_dp13", 2),
    "segformer_cs2dp": ("cs2dp", 2),
    "upernet_mae_cs2dp": ("cs2dp", 14),
    "upernet_beit_cs2dp": ("cs2dp", 14),
}
SUPERVISED = [name for name in SIZES if name.endswith("_supervised")]


def labelled_cvrg_pano(folder: Path) -> Path:
    """The declaration that the scenario asks the user for, from the page on data sets, with ids."""
    page = (SCENARIOS.parent / "docs/datasets.md").read_text(encoding="utf-8")
    tree = yaml.safe_load(page.split("### CVRG-Pano")[1].split("```yaml\n")[1].split("```")[0])
    tree["labels"]["ids"] = miniature.CVRG_IDS
    return declare(folder, tree)


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_scenarios_adapt_nothing(name):
    params = load_scenario(name, folder=SCENARIOS)
    source, target = params.data.source, params.data.target
    assert params.warmup.iterations == params.adapt.iterations == 0 and params.rounds == 1
    assert target.prepare == source.prepare.model_copy(update={"limit": {"train": 16}})
    same = {"splits", "unlabelled"}
    assert source.dataset.model_dump(exclude=same) == target.dataset.model_dump(exclude=same)
    # Weights are chosen on images that they are not tested on, or not at all.
    chosen_on_test = source.dataset.splits["val"] == target.dataset.splits["test"]
    assert params.pretrain.select == ("last" if chosen_on_test else "best_source_val")


@pytest.mark.parametrize("name", SIZES)
def test_scenario_on_miniature_trees(name, tmp_path):
    params = load_scenario(name, folder=SCENARIOS)
    for (role, domain), size in zip(params.data.domains.items(), SIZES[name], strict=True):
        assert (domain.prepare.height, domain.prepare.width) == size
        tree = Path(domain.dataset.path).name
        assert domain.dataset.path == f"data/downloads/{tree}"
        getattr(miniature, tree)(tmp_path / role / "data")
        moved = {"path": str(tmp_path / role / "data")}
        if name == "cvrg_supervised":
            assert domain.dataset.declaration == "data/downloads/cvrg_pano/cvrg_pano.yaml"
            moved["declaration"] = str(labelled_cvrg_pano(tmp_path / role / "data"))
        dataset = domain.dataset.model_copy(update=moved)
        small = domain.prepare.model_copy(update={"height": 64, "width": 128})
        raw, out = tmp_path / role / "raw", tmp_path / role / "prepared"
        download(role=role, dataset=dataset, out=raw, progress=False)
        preprocess(
            role=role,
            raw=raw,
            out=out,
            domain=domain.model_copy(update={"dataset": dataset, "prepare": small}),
            label_space=params.label_space,
            context=RunContext(),
        )
        splits = {path.name: PreparedSplit(path) for path in out.iterdir() if path.is_dir()}
        assert set(splits) == ({"train", "test"} if role == "target" else {"train", "val"})
        # Labels of a target's train split never reach training.
        assert {s for s, part in splits.items() if part.has_labels} == set(splits) - (
            {"train"} if role == "target" else set()
        )
        for part in splits.values():
            assert part.num_classes == CLASSES[name]
            assert part.has_labels == bool(np.asarray(part.class_pixels).sum())


@pytest.mark.parametrize(
    ("source", "target", "empty"),
    [("synpass22", "cs13", ()), ("nyu40", "indoor8", ()), ("indoor13", "indoor8", ())],
)
def test_sources_have_every_class_of_their_scenarios(source, target, empty):
    assert remap_report(source, target).empty == empty


@pytest.mark.parametrize("name", MODELS)
def test_another_model_on_the_same_data(name):
    params, (base, rates) = load_scenario(name, folder=SCENARIOS), MODELS[name]
    other = load_scenario(base, folder=SCENARIOS)
    for section in ("data", "label_space", "sources", "warmup", "adapt", "pseudo_labels", "prototypes"):
        assert getattr(params, section) == getattr(other, section), section
    assert params.model != other.model
    model, optim = params.model, params.pretrain.optim
    with torch.device("meta"):
        net = create_model(
            model.encoder,
            num_classes=get_label_space(params.label_space).num_classes,
            decoder=model.decoder,
            drop_path=model.drop_path,
            width=model.width,
            auxiliary_weights=model.auxiliary_weights,
        )
    groups = parameter_groups(
        net,
        optim.weight_decay,
        lr=optim.lr,
        layer_decay=optim.layer_decay,
        head_lr_factor=optim.head_lr_factor,
    )
    assert len({group["lr"] for group in groups}) == rates


def test_the_supervised_scenario_adapts_nothing():
    params = load_scenario("setr_pup_camvid", folder=SCENARIOS)
    assert params.warmup.iterations == params.adapt.iterations == 0
    assert params.data.target.dataset.unlabelled == ["train"]
    swa = params.pretrain.swa
    assert swa.every * params.pretrain.batch_size >= 367  # an epoch of CamVid between two weights
    window = params.evaluate.sliding
    assert window.window == params.pretrain.augment.crop_width and window.stride == round(
        2 / 3 * window.window
    )
