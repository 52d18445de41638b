"""The sentences of the report, made from params and results; none says more than the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import pandas as pd

from panoda.report.collect import Results
from panoda.report.tables import model_label, number, signed

_SINGLE_SEED = 2.0
"""Differences below this many points are called small: they vary with the seed."""

DECLARED = {
    "ade20k": "ADE20K photographs",
    "camvid": "CamVid street images",
    "camvid32": "CamVid street images",
    "cityscapes": "Cityscapes street images",
    "cvrg_pano": "CVRG-Pano panoramas",
    "densepass": "DensePASS panoramas",
    "labelmefacade": "LabelMeFacade photographs",
    "synpass": "SynPASS panoramas",
}
"""What the images of the built-in declarations are."""


def domain_name(domain: Mapping[str, Any], *, fallback: str) -> str:
    """What a domain's images are, from params.data.<role>; ``fallback`` when params say nothing."""
    dataset = domain.get("dataset") or {}
    kind = str(dataset.get("kind") or "")
    if kind == "city":
        panorama = (dataset.get("camera") or {}).get("projection") == "erp"
        looks = ", ".join(dataset.get("looks") or {})
        return f"rendered {'panoramas' if panorama else 'pinhole images'}" + (f" ({looks})" if looks else "")
    known = {"folder": "unlabelled panoramas", "": fallback}
    if kind == "declared":
        declaration = str(dataset.get("declaration") or "")
        groups = ", ".join(dataset.get("groups") or [])
        return (DECLARED.get(declaration) or PurePath(declaration).stem) + (f" ({groups})" if groups else "")
    if kind == "stanford2d3d":
        images = "pinhole images" if dataset.get("variant") == "pinhole" else "panoramas"
        return f"Stanford2D3D {images} (fold {dataset.get('fold', 1)})"
    if kind == "structured3d":
        return f"Structured3D panoramas ({dataset.get('light', 'rawlight')})"
    return known.get(kind, kind)


def title(results: Results) -> str:
    """What the page is about."""
    return "Supervised training" if _passed_through(results) else "From pinhole images to panoramas"


def task_sentence(params: Mapping[str, Any], results: Results) -> str:
    """What was trained, and what it was adapted to."""
    data = params.get("data") or {}
    more = [domain_name(data[role], fallback=role) for role in data if role not in ("source", "target")]
    first = domain_name(data.get("source") or {}, fallback="labelled pinhole images")
    source = " and ".join([first, *more])
    target = domain_name(data.get("target") or {}, fallback="unlabelled panoramas")
    model = params.get("model") or {}
    named = (
        f"A model of {model['encoder']} and {model['decoder']}"
        if "encoder" in model
        else "A segmentation model"
    )
    trained = f"{named} with {results.space.num_classes} classes, trained on {source}"
    if _passed_through(results):
        return f"{trained} and tested on {target}, without adaptation."
    return f"{trained} and adapted to {target} without target labels."


def _passed_through(results: Results) -> bool:
    """Every stage after source training had 0 steps."""
    return bool(results.copies) and not results.adapted


def headline(results: Results, table: pd.DataFrame) -> str:
    """The main result in a sentence with numbers."""
    source, target = _ends(table, "source_val/miou"), _ends(table, "target_test/miou")
    if target is None:
        return f"No score on the target: {target_note(results)}." + _without_target(results, source)
    if not results.adapted:
        text = f"{model_label(results.models[0])}: {number(target[0])} % mIoU on target test"
        if _passed_through(results):
            text = f"Without adaptation, {number(target[0])} % mIoU on target test"
        return text + (f" and {number(source[0])} % on source val." if source is not None else ".")
    gap = target[1] - target[0]
    stage = "Warm-up" if results.models[-1] == "warmup" else "Adaptation"
    text = f"{stage} left mIoU on target test at {number(target[1])} %"
    if number(target[0]) != number(target[1]):
        text = (
            f"{stage} {'raised' if gap > 0 else 'lowered'} mIoU on target test from {number(target[0])} % to "
            f"{number(target[1])} % ({signed(gap)} points)"
        )
    if source is not None:
        text += f", while source val went from {number(source[0])} % to {number(source[1])} %"
    return text + "."


def _without_target(results: Results, source: tuple[float, float] | None) -> str:
    """What can be said when the target has no labels."""
    text = ""
    if source is not None:
        text += f" Source val {_from_to(results, source)} mIoU."
    ends = [results.metrics[m].get("target_test", {}) for m in (results.models[0], results.models[-1])]
    if all("mean_confidence" in scores for scores in ends):
        confidence = (100 * ends[0]["mean_confidence"], 100 * ends[1]["mean_confidence"])
        text += f" Mean confidence on the target {_from_to(results, confidence)}, which is no accuracy."
    return text


def _from_to(results: Results, ends: tuple[float, float]) -> str:
    if not results.adapted:
        return f"is {number(ends[0])} %"
    return f"went from {number(ends[0])} % to {number(ends[1])} %"


def caution(params: Mapping[str, Any], results: Results, table: pd.DataFrame) -> str:
    """How far the headline carries."""
    seed = params.get("seed")
    text = f"This is one run{'' if seed is None else f' (seed {seed})'}"
    target = _ends(table, "target_test/miou")
    if target is None:
        return f"{text}; another seed gives other predictions."
    if not results.adapted:
        return f"{text}; another seed gives another score."
    text += f". Gaps under {_SINGLE_SEED:.0f} points can come from the seed alone"
    return text + (", and this one is so small." if abs(target[1] - target[0]) < _SINGLE_SEED else ".")


def _ends(table: pd.DataFrame, column: str) -> tuple[float, float] | None:
    """First and last value of a column of the result table; None without the column."""
    if column not in table.columns:
        return None
    values = table[column].to_numpy(dtype=float)
    return float(values[0]), float(values[-1])


def target_note(results: Results) -> str:
    """Why the target has no scores."""
    return str(results.sets.get("target_test", {}).get("note") or "the target test images have no labels")


def selection_sentences(params: Mapping[str, Any], results: Results) -> list[str]:
    """How the checkpoint of each stage was chosen."""
    select = (params.get("pretrain") or {}).get("select", "best_source_val")
    chosen = {
        "best_source_val": "keeps the weights with the highest mIoU on source val"
        + (" (the mean over all sources)" if len(params.get("sources") or {}) > 1 else ""),
        "last": "keeps the weights of its last step",
    }
    # Methods with a teacher keep it; the others have no average.
    averaged = "ema_momentum" in (params.get("adapt") or {})
    kept = "the averaged (EMA) teacher" if averaged else "the model"
    idle = "had no steps: it passes the model on, and is not shown."
    return [
        f"Source training {chosen.get(select, f'selects by {select}')}.",
        f"Warm-up {idle if 'warmup' in results.copies else 'keeps the weights of its last step.'}",
        f"Adaptation {idle if 'round1' in results.copies else f'keeps {kept} after its last step.'}",
        _label_sentence(select, results),
    ]


def _label_sentence(select: str, results: Results) -> str:
    """Whether target labels took part in a choice."""
    about = results.sets.get("target_test", {})
    if shared := about.get("images_in_source_val", 0):
        text = f"{shared} of the {about['images']} target test images are images of source val as well. "
        if select == "last":
            return text + "Their labels took part in no choice."
        return text + "Their labels helped to choose the weights, so the score on target test is too good."
    unseen = "No target label took part in any choice: target test labels are first read by the evaluation"
    if _passed_through(results):
        return f"{unseen}."
    return f"{unseen}, after the last model was written, and the target train split has none."


def space_name(name: str) -> str:
    """A label space as it is called: of a file, its name without folder and suffix."""
    return PurePath(name).stem


def remap_rows(results: Results) -> list[dict[str, str]]:
    """What became of the raw classes of every labelled set, in words: set, spaces, dropped, merged, empty."""
    rows = []
    for name in results.shown_sets:
        about = results.sets.get(name, {})
        remap = about.get("remap")
        if not remap:
            continue
        merged = [f"{' + '.join(classes)} → {to}" for to, classes in remap["merged"].items()]
        raw = space_name(about["raw_label_space"])
        same = about["raw_label_space"] == results.space.name
        rows.append(
            {
                "set": name,
                "spaces": f"{raw}, as it is" if same else f"{raw} → {space_name(results.space.name)}",
                "dropped": ", ".join(remap["dropped"]) or "none",
                "merged": "; ".join(merged) or "none",
                "empty": ", ".join(remap["empty"]) or "none",
            }
        )
    return rows


def shared_note(results: Results) -> str:
    """Which classes have no source labels; empty when all have."""
    shared = set(results.sets.get("source_val", {}).get("shared_classes") or results.space.names)
    missing = [name for name in results.space.names if name not in shared]
    if not missing:
        return ""
    return (
        f"The source labels know no {', '.join(missing)}; the columns named shared leave "
        f"{'it' if len(missing) == 1 else 'them'} out."
    )


def absent_note(results: Results, name: str) -> str:
    """Which classes do not occur in a labelled set; empty when all do."""
    rows = results.per_class[results.per_class["set"] == name]
    pixels = rows.groupby("class", sort=False)["label_pixels"].max()
    absent = list(pixels[pixels == 0].index)
    if not absent or not results.labelled(name):
        return ""
    verb, counts = ("does", "counts") if len(absent) == 1 else ("do", "count")
    where = name.replace("_", " ")
    return f"{', '.join(absent).capitalize()} {verb} not occur in {where} and {counts} for nothing."


def prototype_note(classes: pd.DataFrame) -> str:
    """Which classes have a prototype in which domain."""
    seen = {d: classes[f"{d}_seen"].astype(bool) for d in ("source", "target")}
    names = classes["class"]
    source, target = int(seen["source"].sum()), int(seen["target"].sum())
    text = f"{source} classes have a source prototype, {target} a target one."
    groups = (
        ("source only", seen["source"] & ~seen["target"]),
        ("target only", seen["target"] & ~seen["source"]),
        ("neither", ~seen["source"] & ~seen["target"]),
    )
    for label, chosen in groups:
        if chosen.any():
            text += f" In {label}: {', '.join(names[chosen])}."
    return text


def pseudo_label_note(classes: pd.DataFrame) -> str:
    """How much was kept, and which classes were never predicted."""
    predicted, kept = classes["predicted_pixels"], classes["kept_pixels"]
    share = 100.0 * kept.sum() / max(1, predicted.sum())
    text = f"{share:.0f} % of the pixels of target train carry a pseudo-label."
    never = list(classes.loc[predicted == 0, "class"])
    return text + (f" Never predicted: {', '.join(never)}." if never else "")
