import math

import pandas as pd
import pytest

from panoda.report import tables


def per_class_rows():
    rows = [
        ("source_only", "target_test", "road", 0.6, 900, 950),
        ("source_only", "target_test", "car", 0.2, 100, 50),
        ("source_only", "target_test", "train", math.nan, 0, 0),
        ("round1", "target_test", "road", 0.7, 900, 900),
        ("round1", "target_test", "car", 0.1, 100, 100),
        ("round1", "target_test", "train", math.nan, 0, 0),
    ]
    return pd.DataFrame(rows, columns=["model", "set", "class", "iou", "label_pixels", "predicted_pixels"])


METRICS = {
    "source_only": {"target_test": {"miou": 0.4, "iou": {"road": 0.6, "car": 0.2}, "pixel_accuracy": 0.8}},
    "round1": {"target_test": {"miou": 0.45, "iou": {"road": 0.7, "car": 0.1}, "pixel_accuracy": 0.9}},
}


def test_result_table_is_in_percent_with_gaps_to_the_first_model():
    table = tables.result_table(METRICS, per_class_rows(), models=["source_only", "round1"])
    assert table.loc["round1", "target_test/miou"] == pytest.approx(45)
    assert table.loc["round1", "target_test/miou/gap"] == pytest.approx(5)
    assert table.loc["source_only", "target_test/accuracy/gap"] == 0
    # Source val has no scores and nothing was computed on shared classes: no such columns.
    assert not [c for c in table.columns if c.startswith("source_val") or "shared" in c]


def test_frequent_mean_takes_the_most_labelled_classes_only():
    rows = per_class_rows()
    assert tables.frequent_classes(rows) == ["road", "car"] and tables.frequent_classes(rows, 1) == ["road"]
    table = tables.result_table(METRICS, rows, models=["source_only", "round1"])
    assert table["target_test/frequent"].tolist() == pytest.approx([40, 40])


def test_per_class_table_sorts_by_frequency_and_keeps_absent_classes():
    table = tables.per_class_table(per_class_rows(), models=["source_only", "round1"])
    assert list(table.index) == ["road", "car", "train"]
    assert table["share"].tolist() == [90, 10, 0]
    assert table["gap"].tolist()[:2] == pytest.approx([10, -10]) and math.isnan(table["gap"]["train"])


def test_prediction_table_gives_shares_of_each_model():
    table = tables.prediction_table(per_class_rows(), models=["source_only", "round1"])
    assert table["source_only"].tolist() == pytest.approx([95, 5, 0])
    assert table["gap"].tolist() == pytest.approx([-5, 5, 0])


def test_recipe_names_only_what_is_switched_on():
    adapt = {
        "iterations": 10,
        "batch_size": 2,
        "optim": {"name": "adamw", "lr": 4e-4},
        "method": "teacher_mix",
    }
    adapt |= {"ema_momentum": 0.99, "class_mix": 0.0, "erp_warp": 0.3}
    (row,) = tables.recipe_table({"adapt": adapt}).to_dict("records")
    assert row["parts"] == "teacher mix, EMA teacher 0.99, sphere warp 0.3"
    assert row["optimiser"] == "adamw, 0.0004" and row["steps"] == 10
    assert tables.recipe_table({}).empty


@pytest.mark.parametrize(
    ("value", "text"), [(4.75, "+4.8"), (-0.3, "−0.3"), (-0.04, "±0.0"), (math.nan, "–"), (math.inf, "–")]
)
def test_signed(value, text):
    assert tables.signed(value) == text


def test_labels():
    assert [tables.model_label(m) for m in ("source_only", "warmup", "round12", "equal_step_control")] == [
        "Source only",
        "Warm-up",
        "Adapted, round 12",
        "Equal step control",
    ]
    assert tables.stage_label("adapt, round 2") == "Adaptation, round 2" and tables.number(math.nan) == "–"
