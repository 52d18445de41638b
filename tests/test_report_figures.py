import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from panoda.report import figures
from panoda.report.style import INK, figure_style, model_colours, new_figure, to_svg

MODELS = {"source_only": "Source only", "round1": "Adapted"}


def regions(place, start, stop, edges):
    rows = [
        (model, (a + b) / 2, a, b, 0.3 + 0.01 * i)
        for model in MODELS
        for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False))
    ]
    return pd.DataFrame(rows, columns=["model", place, start, stop, "miou"])


def test_confusion_figure_prints_row_shares():
    names = ["road", "car", "train"]
    counts = pd.DataFrame([[90, 10, 0], [1, 3, 0], [0, 0, 0]], index=names, columns=names)
    figure = figures.confusion_figure(counts, title="t")
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts == ["90", "10", "25", "75"]  # the row without labels stays empty


def test_per_class_figure_draws_every_present_class_once_per_model():
    rows = pd.DataFrame(
        [(m, c, 0.5, n) for m in MODELS for c, n in (("car", 5), ("road", 50), ("train", 0))],
        columns=["model", "class", "iou", "label_pixels"],
    )
    axes = figures.per_class_figure(rows, models=MODELS, colours={"road": (1, 2, 3)}).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["road", "car"]
    assert len(axes.patches) == 4 and {p.get_width() for p in axes.patches} == {50.0}


def test_curves_take_gaps_and_leave_out_what_is_missing():
    history = pd.DataFrame(
        {"step": [1, 2, 3], "loss/total": [2, 1.5, 1], "miou/source_val": [np.nan, 0.4, np.nan]}
    )
    panels = figures.curves_figure(history).axes
    assert [a.get_title(loc="left") for a in panels] == ["loss", "source val mIoU in %"]
    assert panels[1].lines[0].get_xydata().tolist() == [[2.0, 40.0]]
    assert figures.curves_figure(pd.DataFrame({"step": [0]})) is None


def test_the_legend_of_losses_hides_no_curve_and_the_sum_no_part():
    names = ("loss/source_ce", "loss/target_ce", "loss/mpa", "loss/total")
    history = pd.DataFrame({"step": [0, 1, 2], "lr": 0.1, **dict.fromkeys(names, [3.0, 2.0, 1.0])})
    figure = figures.curves_figure(history)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["source ce", "target ce", "mpa", "total"]
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    total, part = figure.axes[0].lines[-1], figure.axes[0].lines[0]
    assert total.get_linewidth() > 2 * part.get_linewidth() and total.get_zorder() < part.get_zorder()


def test_azimuth_is_closed_and_turns_right_from_forward():
    axes = figures.azimuth_figure(
        regions("azimuth_deg", "left_deg", "right_deg", [-90, 90, 270]), models=MODELS
    ).axes[0]
    angle, value = axes.lines[0].get_data()
    assert axes.get_xlabel() == "mIoU in %"
    assert np.rad2deg(angle).tolist() == [0, 180, 0] and value[0] == value[-1] == pytest.approx(30)
    assert axes.get_theta_direction() == -1 and axes.get_theta_offset() == pytest.approx(np.pi / 2)


def test_latitude_spans_the_band():
    rows = regions("lat_deg", "lat_bottom_deg", "lat_top_deg", [-35, 0, 35])
    axes = figures.latitude_figure(rows, models=MODELS).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["−35°", "0°", "35°"]
    assert axes.patches[0].get_data().edges.tolist() == [-35, 0, 35]


def test_pseudo_labels_and_prototypes_show_only_what_exists():
    table = pd.DataFrame(
        {"class": ["a", "b"], "predicted_pixels": [10, 0], "kept_share": [0.5, 0], "threshold": [0.9, 0]}
    )
    assert [t.get_text() for t in figures.pseudo_label_figure(table).axes[0].get_yticklabels()] == ["a"]
    cosine = pd.DataFrame({"class": ["a", "b"], "cosine": [0.25, np.nan]})
    axes = figures.prototype_figure(cosine).axes[0]
    assert [p.get_width() for p in axes.patches] == [0.25] and axes.texts[0].get_text() == "0.250"
    assert figures.prototype_figure(cosine[1:]) is None


def test_svg_takes_page_colours_and_has_ids_of_its_own():
    def draw():
        with figure_style():
            figure, axes = new_figure(2, 2)
            axes.plot([0, 1], [0, 1])
            axes.set_title("a <b> & c")
        return figure

    svg = to_svg(draw(), name="one")
    assert svg.startswith("<svg aria-hidden") and "currentColor" in svg and "var(--muted)" in svg
    assert INK not in svg and "a &lt;b&gt; &amp; c" in svg
    assert all(i.startswith("one-") for i in re.findall(r'\bid="([^"]+)"', svg))
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert references and set(references) <= set(re.findall(r'\bid="([^"]+)"', svg))
    assert not re.search(r"<svg[^>]* (width|height)=", svg) and "viewBox" in svg
    assert to_svg(draw(), name="one") == svg


def test_more_models_than_colours_still_have_one_each():
    assert len(model_colours([f"round{i}" for i in range(12)])) == 12
