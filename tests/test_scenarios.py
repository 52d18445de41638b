"""The scenarios of published settings: their data sections, on miniature trees of the data sets they name."""

from __future__ import annotations

from pathlib import Path

import miniature
import numpy as np
import pytest
import yaml
from data_project import declare

from panoda.config import load_params
from panoda.data.prepared import PreparedSplit
from panoda.labels import remap_report
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.training.context import RunContext

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
    params = load_params(SCENARIOS / f"{name}.yaml")
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
    params = load_params(SCENARIOS / f"{name}.yaml")
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
