"""The scenarios of published settings: their data sections, on miniature trees of the data sets they name."""

from __future__ import annotations

from pathlib import Path

import miniature
import numpy as np
import pytest

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
}
CLASSES = {
    "cs2dp": 19,
    "cs13_dp13": 13,
    "sp13_dp13": 13,
    "cs13_sp13_dp13": 13,
    "spin2span": 13,
    "spin2span8": 8,
    "s3d8_span8": 8,
}


@pytest.mark.parametrize("name", SIZES)
def test_scenario_on_miniature_trees(name, tmp_path):
    params = load_params(SCENARIOS / f"{name}.yaml")
    for (role, domain), size in zip(params.data.domains.items(), SIZES[name], strict=True):
        assert (domain.prepare.height, domain.prepare.width) == size
        tree = Path(domain.dataset.path).name
        assert domain.dataset.path == f"data/downloads/{tree}"
        getattr(miniature, tree)(tmp_path / role / "data")
        dataset = domain.dataset.model_copy(update={"path": str(tmp_path / role / "data")})
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
