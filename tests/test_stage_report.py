import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image
from report_outputs import PARAMS, PROVENANCE, write_outputs

from panoda.labels import get_label_space
from panoda.report import html
from panoda.report.collect import collect
from panoda.stages.report import report

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Tags with attributes, visible text, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    made = {}

    def make(name="plain", *, params=PARAMS, provenance=PROVENANCE, **options):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            outputs = write_outputs(root / "outputs", **options)
            report(outputs=outputs, params=params, provenance=provenance, out=root / "reports")
            made[name] = (root / "reports" / "index.html").read_text(encoding="utf-8")
        return made[name]

    return make


def test_page_is_self_contained_and_well_formed(pages):
    text = pages()
    page = Page(text)
    assert len(text) < 15e6
    text = outside_the_viewer(text)
    for tag, attrs in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attrs.get(key, "#").startswith(("#", "data:")), (tag, key)
    assert not re.search(r"url\((?!#|&quot;#)|@import|fetch\(|XMLHttpRequest|<script[^>]+src", text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)


def outside_the_viewer(text):
    """The page without the one that it opens on demand; pannellum could fetch, which the page forbids."""
    assert "Content-Security-Policy\" content=\"default-src 'none'" in text
    return re.sub(r'<script type="application/json" id="viewer">.*?</script>', "", text, flags=re.DOTALL)


def test_panoramas_open_in_the_viewer(pages, tmp_path):
    text = pages()
    page = Page(text)
    spheres = [json.loads(a["data-sphere"]) for a in page.all("article") if "data-sphere" in a]
    assert spheres == [{"fov": 360, "latTop": 35, "latBottom": -35}] * 4
    shown = [a for a in page.all("figure") if "data-confidence" in a]
    assert {a["data-what"] for a in shown} == {"source_only", "warmup", "round1"} and len(shown) == 4 * 3
    assert len(text) - len(outside_the_viewer(text)) < 120_000
    outputs = write_outputs(tmp_path / "outputs", target="missing")
    plain = html.render(collect(outputs), params=PARAMS, provenance=PROVENANCE)
    assert "Look around" not in Page(plain).text and 'id="viewer"' not in plain


def test_pictures_and_figures_have_a_text_alternative(pages):
    page = Page(pages())
    images = page.all("img")
    assert len(images) == 2 * 4 * 5 and all(a["alt"] for a in images) and all(int(a["width"]) for a in images)
    assert {a["data-what"] for a in page.all("figure") if "data-what" in a} == {
        "input",
        "truth",
        "source_only",
        "warmup",
        "round1",
    }
    plots = [a for a in page.all("div") if a.get("class", "").startswith("plot")]
    assert plots and all(a["role"] == "img" and len(a["aria-label"]) > 10 for a in plots)
    assert len(page.all("svg")) == len(plots)


def test_headline_and_table_give_the_numbers_of_the_evaluation(pages, tmp_path):
    metrics = json.loads((write_outputs(tmp_path / "o") / "evaluate" / "metrics.json").read_text())
    before, after = (100 * metrics[m]["target_test"]["miou"] for m in ("source_only", "round1"))
    page = Page(pages())
    assert (
        f"raised mIoU on target test from {before:.1f} % to {after:.1f} % (+{after - before:.1f} points)"
        in page.text
    )
    assert f"Adapted, round 1 {after:.1f} +{after - before:.1f}" in page.text
    assert "seed 0" in page.text and "Train does not occur in target test" in page.text


def test_says_how_it_was_selected_trained_and_how_to_repeat_it(pages):
    page = Page(pages())
    for phrase in (
        "No target label took part in any choice",
        "highest mIoU on source val",
        "teacher after its last step",
        "teacher mix, EMA teacher 0.99, class-mix 0.5",
        f"git checkout {PROVENANCE['git_commit']}",
        "versions · torch",
        "b2" * 32,
        "iterations: 800",
        "In neither: train.",
        "pretrain 2026-01-31T12:00:00+00:00 231.5 cpu 0123456789",
        "adapt 2026-01-31T12:09:00+00:00 – – – + changes –",
    ):
        assert phrase in page.text, phrase
    assert "uncommitted" not in page.text


def test_a_loss_is_called_a_loss(pages):
    page = Page(pages("worse", rounds=2, gain=-0.03))
    assert "lowered mIoU" in page.text and "raised" not in page.text
    assert "Adaptation, round 2" in page.text and "Round 2" in page.text


def test_unlabelled_target_degrades_with_a_reason(pages):
    page = Page(pages("unlabelled", target="unlabelled"))
    assert "No score on the target: the target test images have no labels." in page.text
    assert "These are no scores." in page.text and "Source val went from" in page.text
    assert "Nothing to show by direction: the target test images have no labels" in page.text
    assert "round1" in {a.get("data-what") for a in page.all("figure")}


def test_missing_target_and_missing_stages_degrade_with_a_reason(tmp_path):
    outputs = write_outputs(tmp_path / "outputs", target="missing")
    for stage in ("pretrain", "warmup", "adapt", "pseudo_labels", "prototypes"):
        (outputs / stage).rename(tmp_path / stage)
    report(outputs=outputs, params={}, provenance={}, out=tmp_path / "reports")
    page = Page((tmp_path / "reports" / "index.html").read_text())
    assert "there is no target test set" in page.text and "left a history" in page.text
    assert "left no tables" in page.text and "commit of this run is not known" in page.text


def test_without_adaptation_the_page_claims_none(pages):
    idle = {stage: PARAMS[stage] | {"iterations": 0} for stage in ("warmup", "adapt")}
    page = Page(pages("supervised", params=PARAMS | idle, copies=("warmup", "round1")))
    assert "Supervised training" in page.text and "From pinhole images" not in page.text
    assert re.search(
        r"Without adaptation, \d+\.\d % mIoU on target test and \d+\.\d % on source val\.", page.text
    )
    assert "and tested on rendered panoramas (southern, evening), without adaptation." in page.text
    assert (
        "Adaptation had no steps: it passes the model on" in page.text
        and "not run: passes the model through" in page.text
    )
    assert "Adaptation had no steps, so no pseudo-label" in page.text
    for claim in (
        "adapted to",
        "raised",
        "lowered",
        "Adapted, round 1",
        "gap",
        "Gaps",
        "without target labels",
    ):
        assert claim not in page.text, claim
    assert {a["data-what"] for a in page.all("figure") if "data-what" in a} == {
        "input",
        "truth",
        "source_only",
    }


def test_warm_up_alone_is_not_called_adaptation(pages):
    page = Page(pages("warm", copies=("round1",)))
    assert (
        "Warm-up raised mIoU" in page.text and "Adaptation had no steps: it passes the model on" in page.text
    )


def test_says_what_became_of_the_raw_classes(tmp_path):
    own = tmp_path / "port.yaml"
    own.write_text(
        "names: [quay, ramp, water]\nto:\n  cs19: {quay: road, ramp: road, water: null}\n", encoding="utf-8"
    )
    outputs = write_outputs(tmp_path / "outputs", remaps={"source_val": str(own)})
    page = Page(html.render(collect(outputs), params=PARAMS, provenance={}))
    others = ", ".join(name for name in get_label_space("cs19").names if name != "road")
    assert f"source val port → cs19 water quay + ramp → road {others}" in page.text
    assert "target test cs19, as it is none none none" in page.text


def test_scores_by_group(pages, tmp_path):
    outputs = write_outputs(tmp_path / "outputs")
    table = pd.read_csv(outputs / "evaluate/by_group.csv").set_index(["model", "group"])["miou"]
    before, after = (100 * table[m, "evening"] for m in ("source_only", "round1"))
    text = Page(pages()).text
    row = re.search(r"evening \d+ (\S+) \S+ (\S+) (\S+)", text.split("By group of images")[1])
    assert row and row.groups() == (f"{before:.1f}", f"{after:.1f}", f"+{after - before:.1f}")
    empty = pd.read_csv(outputs / "evaluate/by_group.csv").iloc[:0]
    empty.to_csv(outputs / "evaluate/by_group.csv", index=False)
    assert "By group" not in html.render(collect(outputs), params=PARAMS, provenance={})


def test_values_are_escaped(pages):
    hostile = PARAMS | {"scenario": "<script>alert(1)</script>"}
    dirty = {"git_commit": "abc", "git_dirty": True, "note": "a & <b>"}
    text = pages("hostile", params=hostile, provenance=dirty)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text and "a &amp; &lt;b&gt;" in text
    assert "uncommitted changes" in text


def test_same_outputs_same_page(pages, tmp_path):
    outputs = write_outputs(tmp_path / "outputs")
    report(outputs=outputs, params=PARAMS, provenance=PROVENANCE, out=tmp_path / "reports")
    assert (tmp_path / "reports" / "index.html").read_text() == pages()


def test_pictures_stop_at_the_budget(tmp_path, monkeypatch):
    outputs = write_outputs(tmp_path / "outputs")
    monkeypatch.setattr(html, "PICTURE_BUDGET", 60_000)
    monkeypatch.setattr(html, "MAX_WIDTH", 200)
    page = Page(html.render(collect(outputs), params=PARAMS, provenance={}))
    assert "further pictures are left out" in page.text
    assert 0 < len(page.all("img")) < 40 and max(int(a["width"]) for a in page.all("img")) <= 200


def test_errors_name_the_file_and_keep_the_old_page(tmp_path):
    outputs = write_outputs(tmp_path / "outputs")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "index.html").write_text("old")
    arguments = {"outputs": outputs, "params": PARAMS, "provenance": {}, "out": tmp_path / "reports"}
    (outputs / "evaluate" / "per_class.csv").write_text("")
    with pytest.raises(ValueError, match=r"per_class\.csv: cannot be read"):
        report(**arguments)
    (outputs / "evaluate" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json: cannot be read"):
        report(**arguments)
    with pytest.raises(ValueError, match=r"no such folder; run the stage evaluate"):
        report(**arguments | {"outputs": tmp_path / "none"})
    assert (tmp_path / "reports" / "index.html").read_text() == "old"


def test_what_was_learned_without_labels_is_shown(tmp_path):
    outputs = write_outputs(tmp_path / "outputs")
    learned = outputs / "ssl_pretrain"
    learned.mkdir()
    Image.new("RGB", (60, 40)).save(learned / "reconstruction.png")
    (learned / "history.csv").write_text("step,loss/total,lr\n1,1.5,0.1\n2,0.9,0.05\n")
    optim = {"name": "adamw", "lr": 0.006}
    ssl = {"method": "mae", "iterations": 2, "batch_size": 8, "optim": optim, "images": {"target": 1.0}}
    report(outputs=outputs, params={**PARAMS, "ssl": ssl}, provenance=PROVENANCE, out=tmp_path / "reports")
    page = Page((tmp_path / "reports/index.html").read_text(encoding="utf-8"))
    assert "What the encoder learned without labels" in page.text
    assert "Without labels 2 8 adamw, 0.006 mae, images of target 1" in page.text
    assert any(image.get("width") == "60" and "Fixed images" in image["alt"] for image in page.all("img"))
    plain = html.render(collect(write_outputs(tmp_path / "plain")), params=PARAMS, provenance=PROVENANCE)
    assert "ithout labels" not in Page(plain).text
