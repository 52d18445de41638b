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
from panoda.engine.validation import validate_split
from panoda.inference.metrics import ConfusionMatrix
from panoda.models.core.checkpoint import load_model
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


def settings(seed: int, looks: str, overrides: list[str]) -> Params:
    """params.yaml with this seed, world seeds that no other seed uses, and the target looks of a file."""
    tree = read_tree(HERE.parent / "params.yaml", [f"seed={seed}", *overrides])
    target = tree["data"]["target"]["dataset"]
    target["looks"] = yaml.safe_load((HERE / f"looks_{looks}.yaml").read_text())
    offset = WORLDS_PER_SEED * (seed + 1) + LOOK_SETS[looks]
    for domain in ("source", "target"):
        for split in tree["data"][domain]["dataset"]["splits"].values():
            split["seed"] += WORLDS_PER_SEED * (seed + 1) if domain == "source" else offset
    target["splits"].pop("val", None)
    target["splits"]["train"]["labels"] = True  # for the oracle; no other row reads them
    return parse_params(tree)


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
    here = work / looks
    _score(work / "pretrain/model.safetensors", work, here, "source_only")
    for name in names:
        recipe = known_recipes()[name]
        change = [f"adapt.{k}={json.dumps(v)}" for k, v in recipe["adapt"].items()]
        params = settings(seed, looks, [*overrides, *change])
        if (here / f"{name}.json").exists():
            continue
        checkpoint = work / "pretrain/model.safetensors"
        labels = banks = "warmup"
        if recipe["start"] == "source":
            steps = params.warmup.iterations + params.adapt.iterations
            params = settings(seed, looks, [*overrides, *change, f"adapt.iterations={steps}"])
            labels = "oracle" if name == "oracle" else labels
        else:
            labels = banks = recipe["start"]
            checkpoint = here / recipe["start"] / "warmup/model.safetensors"
        for start in {labels, banks}:
            _start(start, work, here, params)
        adapt(
            checkpoint=checkpoint,
            source_train=work / "source/train",
            target_train=here / "target/train",
            pseudo_labels=here / labels / "pseudo_labels",
            prototypes=here / banks / "prototypes",
            out=here / f"run_{name}",
            params=params.adapt,
            seed=seed,
            context=RunContext(),
        )
        _score(here / f"run_{name}/model.safetensors", work, here, name)


def _start(name: str, work: Path, here: Path, params: Params) -> None:
    """A warmed-up model with its pseudo-labels and prototypes, or (oracle) the true labels."""
    folder = here / name
    if folder.exists():
        return
    source, target = work / "source/train", here / "target/train"
    with staged_directory(folder) as staged:
        if name == "oracle":
            _true_labels(target, staged / "pseudo_labels")
            return
        section = params.warmup
        if name == "adversarial":
            section = section.model_copy(update={"colour_transfer": 0.0})
        model = staged / "warmup/model.safetensors"
        common: dict[str, Any] = {"target_train": target, "context": RunContext()}
        warmup(
            checkpoint=work / "pretrain/model.safetensors",
            source_train=source,
            out=model.parent,
            params=section,
            seed=params.seed,
            **common,
        )
        pseudo_labels(checkpoint=model, out=staged / "pseudo_labels", params=params.pseudo_labels, **common)
        prototypes(
            checkpoint=model,
            source_train=source,
            pseudo_labels=staged / "pseudo_labels",
            out=staged / "prototypes",
            params=params.prototypes,
            **common,
        )
    _score(folder / "warmup/model.safetensors", work, here, f"start_{name}")


def known_recipes() -> dict[str, dict[str, Any]]:
    """The rows of recipes.yaml."""
    return dict(yaml.safe_load((HERE / "recipes.yaml").read_text()))


def _true_labels(target_train: Path, out: Path) -> None:
    """The true labels in the layout of the pseudo-label stage, for the oracle."""
    split = PreparedSplit(target_train)
    with staged_directory(out) as folder, PseudoLabelWriter(folder, split) as writer:
        for index in range(len(split)):
            sample = split[index]
            writer.add(sample["id"], sample["label"], torch.full_like(sample["label"], 255))


def _score(checkpoint: Path, work: Path, here: Path, name: str) -> None:
    path = here / f"{name}.json"
    if path.exists():
        return
    model, _ = load_model(checkpoint)
    result: dict[str, Any] = {}
    for key, folder in (("target_test", here / "target/test"), ("source_val", work / "source/val")):
        split = PreparedSplit(folder)
        matrix = validate_split(model, split, batch_size=4, context=RunContext())
        result[key] = _summary(matrix, split)
    write_json(path, result)


def _summary(matrix: ConfusionMatrix, split: PreparedSplit) -> dict[str, Any]:
    iou = np.asarray(matrix.iou(), dtype=np.float64)
    frequent = np.argsort(-np.asarray(split.class_pixels))[:FREQUENT]
    return {
        "miou": float(np.nanmean(iou)),
        "miou_frequent": float(np.nanmean(iou[frequent])),
        "iou": [None if np.isnan(v) else float(v) for v in iou],
        "images": len(split),
    }


def table(root: Path, seeds: list[int], look_sets: list[str]) -> str:
    """The result as a Markdown table per look set: mIoU in %, mean and standard error over seeds."""
    order = ["source_only", "control", "start_adversarial", "ssl", "mpa", "start_warmup"]
    order += ["default_without_mpa", "default", "oracle"]
    parts = []
    for looks in look_sets:
        names = [n for n in order if (root / f"seed{seeds[0]}" / looks / f"{n}.json").exists()]
        found = {n: [read_score(root, s, looks, n) for s in seeds] for n in names}
        control = found.get("control")
        rows = []
        for name, results in found.items():
            row: dict[str, Any] = {"recipe": name}
            for key, title in (("miou", "mIoU"), ("miou_frequent", "8 frequent")):
                value = np.array([100 * r["target_test"][key] for r in results])
                row[title] = _mean_error(value)
                if control:
                    reference = np.array([100 * r["target_test"][key] for r in control])
                    row[f"{title} - control"] = _mean_error(value - reference)
            row["source val"] = _mean_error(np.array([100 * r["source_val"]["miou"] for r in results]))
            if control and "oracle" in found:
                mean = {
                    n: np.mean([r["target_test"]["miou"] for r in found[n]])
                    for n in (name, "control", "oracle")
                }
                gap = mean["oracle"] - mean["control"]
                row["gap closed %"] = f"{100 * (mean[name] - mean['control']) / gap:.0f}"
            rows.append(row)
        images = next(iter(found.values()))[0]["target_test"]["images"]
        parts.append(
            f"Looks: {looks}; {len(seeds)} seeds; {images} test images each; mean +- standard error\n"
        )
        parts.append(markdown_table(pd.DataFrame(rows)))
    return "\n".join(parts)


def _mean_error(value: np.ndarray) -> str:
    error = value.std(ddof=1) / np.sqrt(len(value)) if len(value) > 1 else float("nan")
    return f"{value.mean():.1f} +- {error:.1f}"


def markdown_table(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def read_score(root: Path, seed: int, looks: str, name: str) -> dict[str, Any]:
    """What ``_score`` found for one recipe."""
    return dict(json.loads((root / f"seed{seed}" / looks / f"{name}.json").read_text()))


def main() -> None:
    """Run everything that is not done yet and print the table."""
    known = list(known_recipes())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--looks", nargs="+", choices=LOOK_SETS, default=list(LOOK_SETS))
    parser.add_argument("--recipes", nargs="+", default=known)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--work", type=Path, help="work folder; by default one per parameter set")
    arguments = parser.parse_args()
    overrides = arguments.set
    files = [HERE / "recipes.yaml", *sorted(HERE.glob("looks_*.yaml"))]
    identity = settings(0, "development", overrides).model_dump_json() + "".join(f.read_text() for f in files)
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    root = arguments.work or HERE.parent / "runs" / f"benchmark-{key}"
    for seed in arguments.seeds:
        for looks in arguments.looks:
            params = settings(seed, looks, overrides)
            work = root / f"seed{seed}"
            (work / looks).mkdir(parents=True, exist_ok=True)
            if not (work / looks / "target").exists():
                data(params, work)
                (work / "target").rename(work / looks / "target")
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
