"""What the report calls the images of a domain."""

from __future__ import annotations

import pandas as pd
import pytest

from panoda.report.words import domain_name, headline, selection_sentences, task_sentence


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({"kind": "declared", "declaration": "cityscapes", "groups": None}, "Cityscapes street images"),
        (
            {"kind": "declared", "declaration": "synpass", "groups": ["fog", "rain"]},
            "SynPASS panoramas (fog, rain)",
        ),
        ({"kind": "declared", "declaration": "sets/harbour.yaml"}, "harbour"),
        ({"kind": "stanford2d3d", "variant": "pinhole", "fold": 2}, "Stanford2D3D pinhole images (fold 2)"),
        ({"kind": "stanford2d3d", "variant": "panoramic"}, "Stanford2D3D panoramas (fold 1)"),
        ({"kind": "structured3d", "light": "warmlight"}, "Structured3D panoramas (warmlight)"),
        ({}, "images"),
    ],
)
def test_domain_name(dataset, name):
    assert domain_name({"dataset": dataset}, fallback="images") == name


def test_task_sentence_names_both_domains():
    class Results:
        adapted, copies = True, {}

        class space:
            num_classes = 19

    data = {
        "source": {"dataset": {"kind": "declared", "declaration": "cityscapes"}},
        "target": {"dataset": {"kind": "declared", "declaration": "densepass"}},
    }
    text = task_sentence({"data": data}, Results())  # type: ignore[arg-type]
    assert "19 classes, trained on Cityscapes street images and adapted to DensePASS panoramas" in text


@pytest.mark.parametrize(
    ("select", "shared", "said"),
    [
        (
            "last",
            30,
            "30 of the 40 target test images are images of source val as well. Their labels took part",
        ),
        ("best_source_val", 40, "helped to choose the weights, so the score on target test is too good"),
        ("best_source_val", 0, "No target label took part in any choice"),
    ],
)
def test_selection_of_a_supervised_run(select, shared, said):
    class Results:
        adapted, copies = False, {"warmup": "source_only", "round1": "source_only"}
        sets = {"target_test": {"images": 40, "images_in_source_val": shared}}

    text = " ".join(selection_sentences({"pretrain": {"select": select}}, Results()))  # type: ignore[arg-type]
    assert said in text and "Warm-up had no steps" in text and "target train split" not in text


@pytest.mark.parametrize(
    ("after", "text"),
    [
        (30.0, "raised mIoU on target test from 20.0 % to 30.0 % (+10.0 points)."),
        (19.0, "lowered mIoU on target test from 20.0 % to 19.0 % (\u22121.0 points)."),
        (20.04, "left mIoU on target test at 20.0 %."),
    ],
)
def test_the_headline_says_which_way(after, text):
    class Results:
        adapted, copies, models = True, {}, ["source_only", "round1"]

    table = pd.DataFrame({"target_test/miou": [20.0, after]})
    assert headline(Results(), table) == f"Adaptation {text}"  # type: ignore[arg-type]
