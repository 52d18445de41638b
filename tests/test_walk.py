"""Every data set's whole way on a miniature tree: get, check, preprocess, one training step, evaluate.

What has an address comes from a local server that misbehaves in a different way for each set; what is
fetched by hand lies there as the published archives. In the end the pixels that evaluate counted are those
that the tree was written with.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import miniature
import numpy as np
import pandas as pd
import pytest
import torch
from arrivals import (
    DOWNLOADS,
    Arrive,
    by_hand,
    copied,
    from_server,
    stanford_archives,
    structured_archives,
    wrong_file_first,
)
from data_project import declare, declared, make_project, prepare, problems
from http_server import serve
from miniature import SIZE, Labels

import panoda.data.check.check as check
from panoda.config import AugmentParams, EvaluateParams, ModelParams, OptimParams
from panoda.data.acquire import fetch_http
from panoda.data.loading.prepared import PreparedSplit
from panoda.labels import remap_table
from panoda.methods.alignment import AlignmentParams
from panoda.methods.supervised import SupervisedParams
from panoda.stages.evaluate import evaluate
from panoda.stages.pretrain import pretrain
from panoda.stages.warmup import warmup
from panoda.system.context import RunContext

ONE_STEP = SupervisedParams(
    iterations=1,
    batch_size=2,
    optim=OptimParams(lr=1e-3),
    augment=AugmentParams(crop_height=32, crop_width=64),
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fetch_http, "CHUNK", 1024)  # small files, too, are cut in the middle
    return make_project(tmp_path, monkeypatch)


# --- what a set is ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """One set's way.

    Attributes:
        tree: Function of ``miniature`` that writes it.
        arrive: Brings the tree into its default folder.
        splits: Our splits -> published ones; the last is evaluated.
        spaces: Label space of the files and of the prepared labels.
        dataset: Section of params.yaml, as far as it is not that of a built-in declaration.
        wrong: What check finds in the tree.
    """

    tree: str
    arrive: Arrive
    splits: dict[str, str]
    spaces: tuple[str, str]
    dataset: dict[str, object] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)

    def section(self) -> dict[str, object]:
        common = {"path": str(DOWNLOADS / self.tree), "splits": self.splits, **self.dataset}
        return common if "kind" in common else {"kind": "declared", "declaration": self.tree, **common}


def reversed_bytes(body: bytes) -> bytes:
    return body[::-1]


TRAIN_VAL = {"train": "train", "val": "val"}
THREE = {**TRAIN_VAL, "test": "test"}
STANFORD = by_hand("stanford2d3d", stanford_archives)
WALKS = {
    "cityscapes": Walk(
        "cityscapes",
        from_server(
            "cityscapes",
            {"gtFine_trainvaltest.zip": "gtFine", "leftImg8bit_trainvaltest.zip": "leftImg8bit"},
            cuts=True,
        ),
        TRAIN_VAL,
        ("cs19", "cs19"),
    ),
    "synpass": Walk(
        "synpass",
        from_server("synpass", {"SynPASS.zip": ""}, cuts=True, ranges=False),
        THREE,
        ("synpass22", "cs13"),
    ),
    "stanford2d3d pinhole": Walk(
        "stanford2d3d",
        STANFORD,
        TRAIN_VAL,
        ("indoor13", "indoor13"),
        {"kind": "stanford2d3d", "variant": "pinhole", "fold": 2},
    ),
    "stanford2d3d panoramic": Walk(
        "stanford2d3d",
        STANFORD,
        TRAIN_VAL,
        ("indoor13", "indoor8"),
        {"kind": "stanford2d3d", "variant": "panoramic", "fold": 1},
    ),
    "structured3d": Walk(
        "structured3d",
        by_hand("structured3d", structured_archives),
        THREE,
        ("nyu40", "indoor8"),
        {"kind": "structured3d"},
        {check.UNREADABLE_IMAGE: 1, check.UNREADABLE_LABEL: 1, check.NO_LABEL: 1, check.SAME_IMAGE: 1},
    ),
    "camvid": Walk("camvid", by_hand("camvid", copied), TRAIN_VAL, ("camvid11", "cs13")),
    "camvid32": Walk(
        "camvid32",
        by_hand("camvid32", copied),
        {"train": "0001TP", "val": "Seq05VD"},
        ("camvid11", "camvid11"),
    ),
    "ade20k": Walk(
        "ade20k",
        wrong_file_first("ade20k", "ADEChallengeData2016.zip", reversed_bytes, "wrong sha256"),
        TRAIN_VAL,
        ("ade150", "ade150"),
    ),
    "cvrg_pano": Walk(
        "cvrg_pano",
        wrong_file_first("cvrg_pano", "cvrg_pano.zip", lambda b: b[:-9], "the server has", "cvrg_pano.yaml"),
        {"train": "train", "val": "test"},
        ("cs19", "cs13"),
        {"declaration": "cvrg_pano.yaml"},
    ),
    "own": Walk(
        "own",
        wrong_file_first("own", "own.zip", lambda _: b"<html>log in</html>", "the server has", "own.yaml"),
        TRAIN_VAL,
        ("classes.yaml", "classes.yaml"),
        {"declaration": "own.yaml"},
    ),
}


def write_declarations() -> None:
    """What a user writes: ids for CVRG-Pano as its declaration says, and a data set of one's own."""
    tree = declared("cvrg_pano")
    del tree["splits"]["all"]
    for split in ("train", "test"):
        tree["splits"][split] = {
            "images": [f"{split}/rgb/{{id}}.png"],
            "labels": [f"{split}/mask/{{id}}.png"],
        }
    labels = {"space": "cs19", "encoding": "ids", "ids": miniature.CVRG_IDS, "void": [0, 3, 7]}
    declare(Path(), {**tree, "labels": labels})
    Path("classes.yaml").write_text("names: [way, house, green, sky, thing]\n")
    palette = {",".join(map(str, colour)): k for k, colour in enumerate(miniature.OWN_COLOURS)}
    declare(
        Path(),
        {
            **{"name": "own", "title": "Mine", "projection": "erp", "fov_x_deg": 360},
            **{"lat_top_deg": 45, "lat_bottom_deg": -45, "size": list(SIZE)},
            "labels": {"space": "classes.yaml", "encoding": "palette", "palette": {**palette, "0,0,0": 255}},
            "splits": {
                "train": {"list_file": "list.csv", "expected": 2},
                "val": {"list_file": "list.csv", "expected": 1},
            },
        },
    )


# --- the way ------------------------------------------------------------------------------------------


def train_one_step(prepared: dict[str, PreparedSplit], out: Path) -> Path:
    """Stage pretrain with one step; returns the model."""
    pretrain(
        source_train=prepared["train"].folder,
        source_val=prepared["val"].folder,
        out=out,
        model=ModelParams(),
        params=ONE_STEP,
        seed=0,
        context=RunContext(),
    )
    history = pd.read_csv(out / "history.csv")
    assert history["step"].tolist() == [1] and math.isfinite(history["loss/total"][0])
    return out / "model.safetensors"


def written_pixels(
    split: PreparedSplit, expected: Labels, theirs: str, spaces: tuple[str, str]
) -> np.ndarray:
    """(K,) pixels of every class that the tree was written with, in the prepared size and label space."""
    counts = np.zeros(256, np.int64)
    for name in split.ids:
        keys = [k for k in expected if k in (name, f"{theirs}:{name}") or k.endswith(f"/{name}")]
        assert len(keys) == 1, (name, keys)
        raw = expected[keys[0]]
        y, x = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(SIZE, raw.shape, strict=True))
        label = remap_table(*spaces)[raw[y][:, x]]
        counts += np.bincount(label.ravel(), minlength=256)
    return counts[: split.num_classes]


def evaluated_pixels(out: Path, part: str) -> np.ndarray:
    """(K,) labelled pixels that stage evaluate counted; its scores are there."""
    scores = json.loads((out / "metrics.json").read_text())["model"][part]
    assert 0 <= scores["miou"] <= 1
    return pd.read_csv(out / f"confusion_model_{part}.csv", index_col="label").to_numpy().sum(axis=1)


def run_evaluate(model: Path, source_val: PreparedSplit, target_test: PreparedSplit, out: Path) -> None:
    evaluate(
        models={"model": model},
        source_val=source_val.folder,
        target_test=target_test.folder,
        out=out,
        params=EvaluateParams(pictures=1),
        context=RunContext(),
    )


@pytest.mark.parametrize("name", WALKS)
def test_walk(project, name):
    walk = WALKS[name]
    write_declarations()
    expected: Labels = getattr(miniature, walk.tree)(project.parent / "tree")
    with serve() as server:
        walk.arrive(project.parent / "tree", server)
    dataset = walk.section()
    assert problems(str(dataset.get("declaration", walk.tree))) == walk.wrong
    prepared = prepare(dataset, walk.spaces[1])
    assert set(prepared) == set(walk.splits)
    model = train_one_step(prepared, Path("outputs/pretrain"))
    ours, theirs = list(walk.splits.items())[-1]
    run_evaluate(model, prepared["val"], prepared[ours], Path("outputs/evaluate"))
    for part, split, published in (
        ("source_val", "val", walk.splits["val"]),
        ("target_test", ours, theirs),
    ):
        written = written_pixels(prepared[split], expected, published, walk.spaces)
        assert written.sum() > 0
        np.testing.assert_array_equal(evaluated_pixels(Path("outputs/evaluate"), part), written)


def test_walk_to_an_unlabelled_target(project):
    miniature.cityscapes(project / DOWNLOADS / "cityscapes")
    expected = miniature.densepass(project.parent / "tree")
    with serve() as server:
        busy = [(429, {"Retry-After": "0"})]
        archives = {"WildPASS2K.zip": "leftImg8bit/train", "DensePASS.zip": ("leftImg8bit/val", "gtFine/val")}
        from_server("densepass", archives, statuses=busy)(project.parent / "tree", server)
    assert not problems("densepass")
    source = {"kind": "declared", "declaration": "cityscapes", "splits": TRAIN_VAL}
    target = {**source, "declaration": "densepass", "splits": {"train": "train", "test": "val"}}
    prepared = {
        role: prepare({**dataset, "path": str(DOWNLOADS / dataset["declaration"])}, "cs19", role=role)
        for role, dataset in (("source", source), ("target", target))
    }
    assert len(prepared["target"]["train"]) == 4 and not prepared["target"]["train"].has_labels
    metrics = warmup(
        checkpoint=train_one_step(prepared["source"], Path("outputs/pretrain")),
        source_train=prepared["source"]["train"].folder,
        target_train=prepared["target"]["train"].folder,
        out=Path("outputs/warmup"),
        params=AlignmentParams(iterations=1, batch_size=2, optim=OptimParams(lr=1e-3)),
        seed=0,
        context=RunContext(),
    )
    assert math.isfinite(metrics["loss/adversarial"])  # the only loss that sees the target
    test = prepared["target"]["test"]
    model = Path("outputs/warmup/model.safetensors")
    run_evaluate(model, prepared["source"]["val"], test, Path("outputs/evaluate"))
    written = written_pixels(test, expected, "val", ("cs19", "cs19"))
    np.testing.assert_array_equal(evaluated_pixels(Path("outputs/evaluate"), "target_test"), written)


def test_images_show_what_their_labels_say(project):
    """A model learns to tell sky, vegetation and buildings apart; with exchanged labels it does not."""
    miniature.cityscapes(project / DOWNLOADS / "cityscapes")
    section = {"kind": "declared", "declaration": "cityscapes", "splits": TRAIN_VAL}
    prepared = prepare({**section, "path": str(DOWNLOADS / "cityscapes")}, "cs13")
    metrics = pretrain(
        source_train=prepared["train"].folder,
        source_val=prepared["val"].folder,
        out=Path("outputs/pretrain"),
        model=ModelParams(),
        params=SupervisedParams(iterations=30, batch_size=4, optim=OptimParams(lr=2e-3, clip_norm=5.0)),
        seed=0,
        context=RunContext(),
    )
    # 0.61, 0.65 and 0.65; with the labels of another view 0.06, 0.06 and 0.45.
    for name in ("sky", "vegetation", "building"):
        assert metrics[f"iou/source_val/{name}"] > 0.5, metrics
