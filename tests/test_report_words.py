"""What the report calls the images of a domain."""

from __future__ import annotations

import pytest

from panoda.report.words import domain_name, task_sentence


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
        ({"kind": "camvid"}, "CamVid street images"),
        ({}, "images"),
    ],
)
def test_domain_name(dataset, name):
    assert domain_name({"dataset": dataset}, fallback="images") == name


def test_task_sentence_names_both_domains():
    class Results:
        class space:
            num_classes = 19

    data = {
        "source": {"dataset": {"kind": "declared", "declaration": "cityscapes"}},
        "target": {"dataset": {"kind": "declared", "declaration": "densepass"}},
    }
    text = task_sentence({"data": data}, Results())  # type: ignore[arg-type]
    assert "19 classes, trained on Cityscapes street images and adapted to DensePASS panoramas" in text
