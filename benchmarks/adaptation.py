"""Does it adapt? Every recipe on fresh worlds, several seeds, from the demo settings of params.yaml.

``python -m benchmarks.adaptation`` writes one JSON per (seed, look set, recipe) into a work folder (finished
ones are not redone) and prints the table with means, standard errors and the share of the gap to the oracle
that is closed. Target labels are read by the evaluation and by the oracle, nowhere else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from panoda.config import Params, parse_params, read_tree
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.pseudo import PseudoLabelWriter
from panoda.inference.metrics import ConfusionMatrix
from panoda.inference.prediction import predict_logits
from panoda.models.core.checkpoint import load_model
from panoda.models.core.segmenter import Segmenter
from panoda.stages.adapt import adapt
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.stages.pretrain import pretrain
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.stages.warmup import warmup
from panoda.system.context import RunContext
from panoda.system.files import staged_directory, write_json
from panoda.system.machine import cores

HERE = Path(__file__).parent
FREQUENT = 8
WORLDS_PER_SEED = 100_000
LOOK_SETS = {"development": 0, "retired": 25_000, "final": 50_000}
"""Offsets of the world seeds of each looks_*.yaml."""
OTHER_LOOKS = 75_000
REDRAWS = 1000


def settings(seed: int, looks: str, overrides: list[str], recipe: Mapping[str, Any] | None = None) -> Params:
    """params.yaml with this seed, world seeds that no other seed uses, target looks of a file, and a recipe."""
    tree = read_tree(HERE.parent / "params.yaml", [f"seed={seed}", *overrides])
    steps = tree["warmup"]["iterations"] + tree["adapt"]["iterations"]
    for section, change in (recipe or {}).items():
        if section not in ("steps", "labels"):
            tree[section] |= change
    if recipe and recipe.get("steps") == "all":
        tree["adapt"]["iterations"] = steps
    target = tree["data"]["target"]["dataset"]
    target["looks"] = yaml.safe_load(_looks_file(looks).read_text())
    offset = WORLDS_PER_SEED * (seed + 1) + LOOK_SETS.get(looks, OTHER_LOOKS)
    for domain in ("source", "target"):
        for split in tree["data"][domain]["dataset"]["splits"].values():
            split["seed"] += WORLDS_PER_SEED * (seed + 1) if domain == "source" else offset
    target["splits"].pop("val", None)
    target["splits"]["train"]["labels"] = True  # for the oracle; no other row reads them
    return parse_params(tree)


def _looks_file(looks: str) -> Path:
    return HERE / f"looks_{looks}.yaml" if looks in LOOK_SETS else Path(looks)


def data(params: Params, work: Path) -> None:
    """Render and prepare both domains, unless they are there."""
    for role in ("source", "target"):
        domain = getattr(params.data, role)
        folder = work / role
        if not (folder / "dataset.json").exists():
            raw = work / f"raw_{role}"
            download(role=role, dataset=domain.dataset, out=raw, progress=True)
            preprocess(
                role=role,
                raw=raw,
                out=folder,
                domain=domain,
                label_space=params.label_space,
                context=RunContext(progress=True),
            )
            shutil.rmtree(raw)


def render(seeds: Sequence[int], look_sets: Sequence[str], root: Path, overrides: list[str]) -> None:
    """The data of every seed and look set, unless they are there: seedN/source and seedN/LOOKS/target."""
    for seed in seeds:
        for looks in look_sets:
            work, here = root / f"seed{seed}", root / f"seed{seed}" / Path(looks).stem
            here.mkdir(parents=True, exist_ok=True)
            if not (here / "target").exists():
                data(settings(seed, looks, overrides), work)
                (work / "target").rename(here / "target")


def source_model(seed: int, root: Path, overrides: list[str]) -> None:
    """Train the source model of a seed, shared by all look sets."""
    torch.set_num_threads(1)
    params = settings(seed, "development", overrides)
    work = root / f"seed{seed}"
    out = work / "pretrain"
    if not (out / "model.safetensors").exists():
        pretrain(
            source_train=work / "source/train",
            source_val=work / "source/val",
            out=out,
            model=params.model,
            params=params.pretrain,
            seed=seed,
            context=RunContext(),
        )


def recipes(seed: int, looks: str, names: list[str], root: Path, overrides: list[str]) -> None:
    """Run the recipes of one seed on one look set; one JSON each."""
    torch.set_num_threads(1)
    work = root / f"seed{seed}"
    here = work / Path(looks).stem
    score(work / "pretrain/model.safetensors", work, here, "source_only")
    for name in names:
        if (here / f"{name}.json").exists():
            continue
        recipe = known_recipes()[name]
        params = settings(seed, looks, overrides, recipe)
        start = start_of(work, here, params)
        labels = start / "pseudo_labels"
        if recipe.get("labels"):
            labels = here / "true_labels"
            _true_labels(here / "target/train", labels)
        out = here / f"run_{name}"
        began = time.perf_counter()
        adapt(
            checkpoint=start / "warmup/model.safetensors",
            source_train=work / "source/train",
            target_train=here / "target/train",
            pseudo_labels=labels,
            prototypes=start / "prototypes",
            out=out,
            params=params.adapt,
            seed=seed,
            context=RunContext(),
        )
        seconds = {"adapt": time.perf_counter() - began, **json.loads((start / "seconds.json").read_text())}
        colours = params.evaluate.source_colours
        score(out / "model.safetensors", work, here, name, seconds=seconds, source_colours=colours)


def start_of(work: Path, here: Path, params: Params) -> Path:
    """Folder with warmed-up model, pseudo-labels and prototypes; recipes with the same sections share it."""
    sections = (params.warmup, params.pseudo_labels, params.prototypes)
    key = hashlib.sha256("".join(s.model_dump_json() for s in sections).encode()).hexdigest()[:12]
    folder = here / f"start-{key}"
    if folder.exists():
        return folder
    source, target = work / "source/train", here / "target/train"
    with staged_directory(folder) as staged:
        model = staged / "warmup/model.safetensors"
        common: dict[str, Any] = {"target_train": target, "context": RunContext()}
        times = [time.perf_counter()]
        warmup(
            checkpoint=work / "pretrain/model.safetensors",
            source_train=source,
            out=model.parent,
            params=params.warmup,
            seed=params.seed,
            **common,
        )
        times.append(time.perf_counter())
        pseudo_labels(checkpoint=model, out=staged / "pseudo_labels", params=params.pseudo_labels, **common)
        times.append(time.perf_counter())
        prototypes(
            checkpoint=model,
            source_train=source,
            pseudo_labels=staged / "pseudo_labels",
            out=staged / "prototypes",
            params=params.prototypes,
            **common,
        )
        times.append(time.perf_counter())
        stages = ("warmup", "pseudo_labels", "prototypes")
        write_json(staged / "seconds.json", dict(zip(stages, np.diff(times).tolist(), strict=True)))
    return folder


def known_recipes() -> dict[str, dict[str, Any]]:
    """The rows of recipes.yaml."""
    return dict(yaml.safe_load((HERE / "recipes.yaml").read_text()))


def _true_labels(target_train: Path, out: Path) -> None:
    """The true labels in the layout of the pseudo-label stage, for the oracle."""
    if out.exists():
        return
    split = PreparedSplit(target_train)
    with staged_directory(out) as folder, PseudoLabelWriter(folder, split) as writer:
        for index in range(len(split)):
            sample = split[index]
            writer.add(sample["id"], sample["label"], torch.full_like(sample["label"], 255))


def score(
    checkpoint: Path,
    work: Path,
    here: Path,
    name: str,
    *,
    seconds: Mapping[str, float] | None = None,
    source_colours: float = 0.0,
) -> None:
    """Write ``HERE/NAME.json``, the mIoU of a model on target test and source val; nothing where it is."""
    path = here / f"{name}.json"
    if path.exists():
        return
    model, _ = load_model(checkpoint)
    result: dict[str, Any] = {"seconds": seconds or {}}
    for key, folder in (("target_test", here / "target/test"), ("source_val", work / "source/val")):
        split = PreparedSplit(folder)
        matrices = np.stack([_matrix(model, split, i, source_colours) for i in range(len(split))])
        iou = _iou(matrices.sum(axis=0))
        frequent = np.argsort(-np.asarray(split.class_pixels))[:FREQUENT]
        result[key] = {
            "miou": float(np.nanmean(iou)),
            "miou_frequent": float(np.nanmean(iou[frequent])),
            "iou": [None if np.isnan(v) else float(v) for v in iou],
            "images": len(split),
        }
        np.savez_compressed(here / f"{name}.{key}.npz", matrices=matrices.astype(np.int32))
    write_json(path, result)


def _matrix(model: Segmenter, split: PreparedSplit, index: int, source_colours: float) -> np.ndarray:
    """Confusion matrix (K, K) of one image."""
    sample = split[index]
    colours = {"source_colours": source_colours, "valid": sample["valid"][None]}
    logits = predict_logits(model, sample["image"][None], wrap=split.full_circle, **colours)
    matrix = ConfusionMatrix(split.num_classes)
    matrix.update(logits.argmax(dim=1), sample["label"][None])
    return matrix.matrix.numpy()


def _iou(matrix: np.ndarray) -> np.ndarray:
    """IoU (..., K) of confusion matrices (..., K, K), nan for classes that are nowhere."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(axis=-1) + matrix.sum(axis=-2) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def table(root: Path, seeds: list[int], look_sets: list[str]) -> str:
    """The result as a Markdown table per look set: mIoU in %, mean and standard error over seeds.

    The interval of a difference holds 95 % of 1000 redraws of the test images, the same ones for both recipes.
    """
    parts = []
    for looks in look_sets:
        folder = root / f"seed{seeds[0]}" / Path(looks).stem
        names = [n for n in ("source_only", *known_recipes()) if (folder / f"{n}.json").exists()]
        found = {n: [read_score(root, s, looks, n) for s in seeds] for n in names}
        control, oracle = found.get("control"), found.get("oracle")
        rows = []
        for name, results in found.items():
            row: dict[str, Any] = {"recipe": name}
            for key, title in (("miou", "mIoU"), ("miou_frequent", "8 frequent")):
                value = np.array([100 * r["target_test"][key] for r in results])
                row[title] = _mean_error(value)
                if control:
                    reference = np.array([100 * r["target_test"][key] for r in control])
                    row[f"{title} - control"] = _mean_error(value - reference)
            if control:
                low, high = _interval(root, seeds, looks, name)
                row["95 % by image"] = f"{low:+.1f} .. {high:+.1f}"
            row["source val"] = _mean_error(np.array([100 * r["source_val"]["miou"] for r in results]))
            if control and oracle:
                mean = [np.mean([r["target_test"]["miou"] for r in rs]) for rs in (results, control, oracle)]
                row["gap closed %"] = f"{100 * (mean[0] - mean[1]) / (mean[2] - mean[1]):.0f}"
            row["seconds"] = f"{np.mean([sum(r['seconds'].values()) for r in results]):.0f}"
            rows.append(row)
        images = next(iter(found.values()))[0]["target_test"]["images"]
        parts.append(
            f"Looks: {looks}; {len(seeds)} seeds; {images} test images each; mean +- standard error\n"
        )
        parts.append(markdown_table(pd.DataFrame(rows)))
    return "\n".join(parts)


def _interval(root: Path, seeds: list[int], looks: str, name: str) -> tuple[float, float]:
    """95 % of the mIoU differences to the control, in points, over redraws of the test images."""
    random = np.random.default_rng(0)
    differences = np.zeros(REDRAWS)
    for seed in seeds:
        folder = root / f"seed{seed}" / Path(looks).stem
        own, control = (np.load(folder / f"{n}.target_test.npz")["matrices"] for n in (name, "control"))
        for k, drawn in enumerate(random.integers(len(own), size=(REDRAWS, len(own)))):
            one, two = (np.nanmean(_iou(m[drawn].sum(axis=0))) for m in (own, control))
            differences[k] += 100 * (one - two) / len(seeds)
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)


def _mean_error(value: np.ndarray) -> str:
    error = value.std(ddof=1) / np.sqrt(len(value)) if len(value) > 1 else float("nan")
    return f"{value.mean():.1f} +- {error:.1f}"


def markdown_table(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def read_score(root: Path, seed: int, looks: str, name: str) -> dict[str, Any]:
    """What ``score`` found for one recipe."""
    return dict(json.loads((root / f"seed{seed}" / Path(looks).stem / f"{name}.json").read_text()))


def main() -> None:
    """Run everything that is not done yet and print the table."""
    known = list(known_recipes())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--looks", nargs="+", default=list(LOOK_SETS), help=f"{', '.join(LOOK_SETS)}, or YAML files of looks"
    )
    parser.add_argument("--recipes", nargs="+", default=known)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--work", type=Path, help="work folder; by default one per parameter set")
    arguments = parser.parse_args()
    overrides = arguments.set
    files = [HERE / "recipes.yaml", *map(_looks_file, arguments.looks)]
    for file in files:
        if not file.is_file():
            parser.error(f"{file}: no such file; looks are {', '.join(LOOK_SETS)}, or a YAML file of looks")
    identity = settings(0, "development", overrides).model_dump_json() + "".join(f.read_text() for f in files)
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    root = arguments.work or HERE.parent / "runs" / f"benchmark-{key}"
    render(arguments.seeds, arguments.looks, root, overrides)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for job in [pool.submit(source_model, s, root, overrides) for s in arguments.seeds]:
            job.result()
        jobs = [
            pool.submit(recipes, s, looks, arguments.recipes, root, overrides)
            for s in arguments.seeds
            for looks in arguments.looks
        ]
        for job in jobs:
            job.result()
    text = table(root, arguments.seeds, arguments.looks)
    (root / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
