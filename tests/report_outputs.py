"""An outputs folder as the stages leave it, made up: for tests of the report, and to look at it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from panoda.evaluation.evaluate import azimuth_limits, latitude_limits
from panoda.labels import get_label_space, remap_report

SPACE = get_label_space("cs19")
ABSENT = ("train",)
PIXELS = dict(
    zip(
        SPACE.names,
        (31, 8, 24, 1.2, 0.9, 1.1, 0.2, 0.4, 9, 2, 17, 0.9, 0.1, 4, 0.6, 0.4, 0.0, 0.1, 0.2),
        strict=True,
    )
)
PARAMS = {
    "scenario": "city",
    "seed": 0,
    "label_space": "cs19",
    "rounds": 1,
    "data": {
        "source": {
            "dataset": {
                "kind": "city",
                "camera": {"projection": "pinhole"},
                "looks": {"northern": None, "harbour": None},
            },
            "prepare": {"height": 128, "width": 256},
        },
        "target": {
            "dataset": {
                "kind": "city",
                "camera": {"projection": "erp"},
                "looks": {"southern": None, "evening": None},
            },
            "prepare": {"height": 96, "width": 512},
        },
    },
    "pretrain": {
        "iterations": 800,
        "batch_size": 4,
        "optim": {"name": "adamw", "lr": 0.002},
        "class_weights": {"kind": "sqrt_inverse"},
        "select": "best_source_val",
    },
    "warmup": {
        "iterations": 40,
        "batch_size": 2,
        "optim": {"name": "adamw", "lr": 2e-4},
        "adversarial_weight": 0.001,
    },
    "adapt": {
        "iterations": 160,
        "batch_size": 2,
        "optim": {"name": "adamw", "lr": 4e-4},
        "method": "teacher_mix",
        "ema_momentum": 0.99,
        "class_mix": 0.5,
    },
}
PROVENANCE = {
    "git_commit": "c9b0900d6f1f3a0f7b0e6d7c2f1a4b5c6d7e8f90",
    "git_dirty": False,
    "dvc_lock_sha256": "5f" * 32,
    "versions": {"python": "3.12.3", "torch": "2.11.0"},
    "device": "cpu",
    "pretrain": {
        "started": "2026-01-31T12:00:00+00:00",
        "seconds": 231.5,
        "git_commit": "0123456789abcdef",
        "device": "cpu",
    },
    "adapt": {
        "started": "2026-01-31T12:09:00+00:00",
        "seconds": None,
        "git_dirty": True,
        "mlflow_run_id": None,
    },
}


def write_outputs(
    folder: Path,
    *,
    rounds: int = 1,
    target: str = "labelled",
    gain: float = 0.04,
    seed: int = 0,
    copies: Sequence[str] = (),
    remaps: Mapping[str, str] | None = None,
) -> Path:
    """Write a made-up outputs folder.

    Args:
        folder: Where.
        rounds: Rounds of adaptation.
        target: labelled, unlabelled or missing.
        gain: What every step after the first adds to the target's scores.
        seed: Of all numbers.
        copies: Models that stages of 0 steps passed through.
        remaps: Set -> label space of its files, where it is another than that of the scores.
    """
    rng = np.random.default_rng(seed)
    models = ["source_only", "warmup", *(f"round{i + 1}" for i in range(rounds))]
    evaluate = folder / "evaluate"
    (evaluate / "pictures").mkdir(parents=True)
    sets = _sets(target)
    for name, about in sets.items():
        if about["labelled"]:
            raw = (remaps or {}).get(name, SPACE.name)
            about |= {"raw_label_space": raw, "remap": asdict(remap_report(raw, SPACE.name))}
    metrics, rows, lat_rows, az_rows, groups = {}, [], [], [], []
    for step, model in enumerate(models):
        for name, about in sets.items():
            if not about["images"]:
                continue
            base = 0.30 if name == "target_test" else 0.42
            iou = {
                c: _iou(c, base + (gain if name == "target_test" else -0.004) * step, rng)
                for c in SPACE.names
            }
            scores = {"images": about["images"], "mean_confidence": 0.71 + 0.04 * step}
            scores["predicted_share"] = {c: PIXELS[c] / 101.1 for c in SPACE.names}
            if about["labelled"]:
                known = {c: v for c, v in iou.items() if v is not None}
                scores |= {
                    "iou": known,
                    "miou": float(np.mean(list(known.values()))),
                    "pixel_accuracy": base + 0.4,
                }
                confusion = _confusion(iou, rng)
                confusion.to_csv(evaluate / f"confusion_{model}_{name}.csv", index_label="label")
            metrics.setdefault(model, {})[name] = scores
            for c in SPACE.names:
                pixels = int(1e5 * PIXELS[c])
                labelled = pixels if about["labelled"] else 0
                value = iou[c] if about["labelled"] else None
                rows.append((model, name, c, value, labelled, int(pixels * rng.uniform(0.8, 1.2))))
            if about["labelled"] and name == "target_test":
                lat_rows += _regions(model, latitude_limits(35, -35, 6), scores["miou"], rng)
                az_rows += _regions(model, azimuth_limits(8), scores["miou"], rng)
                for group in ("evening", "southern"):
                    value = scores["miou"] - 0.1 * (group == "evening")
                    groups.append((model, name, group, about["images"] // 2, value, 0.7, 1234))
    (evaluate / "metrics.json").write_text(json.dumps(metrics, sort_keys=True))
    same = {model: {"same_weights_as": models[0] if model in copies else None} for model in models}
    (evaluate / "models.json").write_text(json.dumps(same))
    (evaluate / "sets.json").write_text(json.dumps(sets))
    columns = ["model", "set", "class", "iou", "label_pixels", "predicted_pixels"]
    pd.DataFrame(rows, columns=columns).to_csv(evaluate / "per_class.csv", index=False)
    for kind, table, limits in (
        ("latitude", lat_rows, ("lat_deg", "lat_bottom_deg", "lat_top_deg")),
        ("azimuth", az_rows, ("azimuth_deg", "left_deg", "right_deg")),
    ):
        names = ["model", "set", *limits, "miou", "pixel_accuracy", "pixels"]
        pd.DataFrame(table, columns=names).to_csv(evaluate / f"by_{kind}.csv", index=False)
    names = ["model", "set", "group", "images", "miou", "pixel_accuracy", "pixels"]
    pd.DataFrame(groups, columns=names).to_csv(evaluate / "by_group.csv", index=False)
    for name, about in sets.items():
        for number in range(min(4, about["images"])):
            _pictures(evaluate / "pictures" / f"{name}-{number:02d}", about, models, rng)
    _stages(folder, rounds, rng)
    return folder


def _sets(target: str) -> dict:
    common = {"label_space": "cs19", "shared_classes": list(SPACE.names), "note": ""}
    source = {
        "images": 40,
        "labelled": True,
        "projection": "pinhole",
        "full_circle": False,
        "sphere": None,
        "digest": "a1" * 32,
    }
    erp = {
        "images": 100,
        "labelled": target == "labelled",
        "projection": "erp",
        "full_circle": True,
        "sphere": {"fov_x_deg": 360.0, "lat_top_deg": 35.0, "lat_bottom_deg": -35.0},
        "digest": "b2" * 32,
    }
    sets = {"source_val": common | source, "target_test": common | erp}
    if target == "unlabelled":
        sets["target_test"]["note"] = "the target test images have no labels"
    if target == "missing":
        sets["target_test"] = {"images": 0, "labelled": False, "note": "there is no target test set"}
    return sets


def _iou(name: str, mean: float, rng) -> float | None:
    if name in ABSENT:
        return None
    return float(np.clip(mean + 0.17 * np.log10(PIXELS[name] + 0.05) + rng.normal(0, 0.02), 0, 0.97))


def _confusion(iou: dict, rng) -> pd.DataFrame:
    k = SPACE.num_classes
    share = rng.dirichlet(0.15 * np.array([PIXELS[c] + 0.1 for c in SPACE.names]), size=k)
    right = np.array([0.0 if iou[c] is None else min(0.98, iou[c] * 1.3) for c in SPACE.names])
    share = share * (1 - right)[:, None] + np.diag(right)
    counts = share * np.array([1e5 * PIXELS[c] for c in SPACE.names])[:, None]
    return pd.DataFrame(counts.astype(int), index=SPACE.names, columns=SPACE.names)


def _regions(model: str, limits: list, mean: float, rng) -> list[tuple]:
    rows = []
    for start, stop in limits:
        value = mean * (1 + 0.15 * np.cos(np.deg2rad((start + stop) / 2))) + rng.normal(0, 0.01)
        rows.append((model, "target_test", (start + stop) / 2, start, stop, value, value + 0.3, 12345))
    return rows


def _pictures(stem: Path, about: dict, models: list[str], rng) -> None:
    size = (512, 96) if about["projection"] == "erp" else (256, 128)
    label = _street(size, rng)
    shade = rng.normal(0, 8, (*label.shape, 3)) + rng.normal(0, 14, 3)
    image = np.clip(SPACE.colourise(label) * 0.6 + 70 + shade, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(f"{stem}-input.png")
    if about["labelled"]:
        _save(label, f"{stem}-truth.png")
    for step, model in enumerate(models):
        pred = label.copy()
        for _ in range(26 - 9 * min(step, 2)):
            y, x = rng.integers(0, label.shape[0]), rng.integers(0, label.shape[1])
            pred[y : y + rng.integers(4, 18), x : x + rng.integers(6, 50)] = rng.choice([0, 1, 2, 8, 13])
        _save(pred, f"{stem}-{model}.png")
        Image.fromarray(255 - 10 * pred).save(f"{stem}-{model}_confidence.png")


def _street(size: tuple[int, int], rng) -> np.ndarray:
    width, height = size
    canvas = Image.new("L", size, SPACE.index("sky"))
    draw = ImageDraw.Draw(canvas)
    horizon = height // 2
    for x in range(0, width, 32):
        top = int(rng.integers(2, horizon - 6))
        kind = rng.choice(["building", "building", "vegetation", "sky"])
        draw.rectangle((x, top, x + 31, horizon + 6), fill=SPACE.index(str(kind)))
    draw.rectangle((0, horizon + 6, width, height), fill=SPACE.index("sidewalk"))
    draw.rectangle((0, horizon + 16, width, height), fill=SPACE.index("road"))
    for _ in range(7):
        x = int(rng.integers(0, width - 30))
        draw.rectangle((x, horizon + 2, x + 26, horizon + 14), fill=SPACE.index("car"))
        draw.line((x + 30, horizon - 22, x + 30, horizon + 12), fill=SPACE.index("pole"), width=2)
        draw.ellipse((x - 8, horizon - 4, x - 3, horizon + 13), fill=SPACE.index("person"))
    return np.asarray(canvas)


def _save(label: np.ndarray, path: str) -> None:
    image = Image.fromarray(label)
    image.putpalette(SPACE.colour_table().tobytes())
    image.save(path)


def _stages(folder: Path, rounds: int, rng) -> None:
    def history(path: Path, steps: int, terms: dict[str, float], val: bool) -> None:
        step = np.arange(10, steps + 1, 10)
        table = pd.DataFrame({"step": step})
        for term, start in terms.items():
            table[term] = start * np.exp(-step / (0.6 * steps)) + rng.normal(0, 0.03 * start, len(step))
        table["lr"] = 0.002 * (1 - step / (steps + 10)) ** 0.9
        if val:
            table["miou/source_val"] = np.where(step % 200 == 0, 0.43 * (1 - np.exp(-step / 250)), np.nan)
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)

    history(folder / "pretrain/history.csv", 800, {"loss/total": 2.4}, True)
    warm = {"loss/total": 0.9, "loss/source_ce": 0.85, "loss/adversarial": 0.7, "loss/discriminator": 0.7}
    history(folder / "warmup/history.csv", 40, warm, False)
    for number in range(1, rounds + 1):
        place = folder if number == 1 else folder / f"rounds/round{number}"
        terms = {"loss/total": 1.5, "loss/source_ce": 0.8, "loss/target_ce": 0.6, "loss/mpa_source": 9.0}
        history(place / "adapt/history.csv", 160, terms, False)
        (place / "adapt/model.safetensors").write_bytes(b"weights %d" % number)
        predicted = np.array([int(1e5 * PIXELS[c]) for c in SPACE.names])
        kept = np.clip(rng.normal(0.55, 0.12, len(predicted)), 0.3, 1)
        table = {
            "class": SPACE.names,
            "predicted_pixels": predicted,
            "kept_pixels": (predicted * kept).astype(int),
        }
        table |= {"kept_share": kept, "threshold": np.clip(rng.normal(0.75, 0.15, len(predicted)), 0.3, 0.9)}
        (place / "pseudo_labels").mkdir(parents=True)
        pd.DataFrame(table).to_csv(place / "pseudo_labels/classes.csv", index=False)
        seen = [c not in ABSENT for c in SPACE.names]
        table = {"class": SPACE.names, "source_seen": seen, "target_seen": seen}
        table |= {"source_images": np.where(seen, 120, 0), "target_images": np.where(seen, 70, 0)}
        table |= {"cosine": np.where(seen, rng.uniform(0.8, 0.99, len(seen)), np.nan)}
        (place / "prototypes").mkdir(parents=True)
        pd.DataFrame(table).to_csv(place / "prototypes/classes.csv", index=False)
