"""Does learning from images without labels help? Starts of one ViT, the same steps after them, on the embedded city.

``python -m benchmarks.self_supervised`` writes one JSON per (seed, decoder, start) into a work folder (finished ones
are not redone) and prints a table: mIoU on the target's test images of the source-only and of the adapted model, and
after how many steps the source model is as good on source val as the random start's was in the end. Settings are
those of scenarios city_mae and city_beit; target labels are read by the evaluation alone. The supervised start has
learned to tell objects of other worlds of the city apart (``panoda classify finetune city``), from random weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.adaptation import HERE, WORLDS_PER_SEED, data, markdown_table
from panoda.classification.city_objects import city_objects
from panoda.classification.params import CITY, FinetuneParams
from panoda.classification.training import judge
from panoda.config import Params, parse_params
from panoda.config.scenarios import load_scenario
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.validation import validate_split
from panoda.models.core.checkpoint import load_model
from panoda.models.weights.importing import import_file
from panoda.models.weights.pretrained import save_weights
from panoda.stages.adapt import adapt
from panoda.stages.pretrain import pretrain
from panoda.stages.ssl_pretrain import ssl_pretrain
from panoda.stages.weights import ENCODER
from panoda.system.context import RunContext
from panoda.system.files import staged_directory, write_json

TARGET, BOTH = {"target": 1.0}, {"source": 1.0, "target": 1.0}
STARTS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "mae_target": {"scenario": "city_mae", "images": TARGET},
    "mae_both": {"scenario": "city_mae", "images": BOTH},
    "beit_both": {"scenario": "city_beit", "images": BOTH},
    "supervised": None,
}
"""Start -> the scenario whose section ssl it takes, and the images that it learns from; None = no ssl."""
CLASSIFIER: dict[str, Any] = {
    **{"data": CITY, "random": True, "img_size": 64, "epochs": 15, "warmup_epochs": 1, "batch_size": 64},
    **{"base_lr": 0.002, "layer_decay": 1.0, "mixup": 0, "cutmix": 0, "crop_scale": (0.5, 1.0)},
    **{"random_erasing": 0, "rand_augment": None, "validate_epochs": 15},
}
"""How the supervised start learns (docs/log.md has its accuracy)."""
DECODERS: dict[str, dict[str, Any]] = {
    "setr_pup": {},
    "upernet": {"decoder": "upernet", "auxiliary_weights": [0.4]},
}
"""Decoder -> what differs from scenario city_mae in section model."""
LOOKS = 20
"""Looks at source val while the source model trains."""


def settings(seed: int, decoder: str, start: str, overrides: list[str]) -> Params:
    """The parameters of one run; every seed has worlds of its own."""
    chosen = STARTS[start] or {"scenario": "city_mae"}
    params = load_scenario(chosen["scenario"], overrides, folder=HERE.parent / "scenarios")
    tree = params.model_dump(mode="json")
    tree |= {"seed": seed, "scenario": "self_supervised"}
    tree["tracking"]["experiment"] = "self_supervised"
    tree["model"] |= DECODERS[decoder]
    tree["pretrain"] |= {"validate_every": max(1, tree["pretrain"]["iterations"] // LOOKS), "select": "last"}
    tree["ssl"] = {"method": "none"} if STARTS[start] is None else {**tree["ssl"], "images": chosen["images"]}
    for domain in ("source", "target"):
        for split in tree["data"][domain]["dataset"]["splits"].values():
            split["seed"] += WORLDS_PER_SEED * (seed + 1)
    return parse_params(tree)


def run(seed: int, decoder: str, start: str, root: Path, overrides: list[str]) -> None:
    """One row: pretraining without labels, source training, adaptation, scores; each once."""
    work = root / f"seed{seed}"
    here = work / decoder / start
    if (here / "scores.json").exists():
        return
    params = settings(seed, decoder, start, overrides)
    source, target = work / "source", work / "target"
    began = time.perf_counter()
    learned = None if start == "random" else _learned(work, start, params)
    with staged_directory(here) as folder:
        metrics = pretrain(
            source_train=source / "train",
            source_val=source / "val",
            out=folder / "pretrain",
            model=params.model,
            params=params.pretrain,
            seed=seed,
            context=RunContext(progress=True),
            ssl_weights=learned,
        )
        adapt(
            checkpoint=folder / "pretrain/model.safetensors",
            source_train=source / "train",
            target_train=target / "train",
            pseudo_labels=folder / "none",  # the default method reads none
            prototypes=None,
            out=folder / "adapt",
            params=params.adapt,
            seed=seed,
            context=RunContext(progress=True),
        )
        curve = pd.read_csv(folder / "pretrain/history.csv")[["step", "miou/source_val"]].dropna()
        stages = {"source_only": "pretrain", "adapted": "adapt"}
        scores = {
            "source_val": metrics["miou/source_val"],
            **{name: _target(folder / stage, target) for name, stage in stages.items()},
            "curve": curve.to_numpy().tolist(),
            "seconds": time.perf_counter() - began,
        }
        write_json(folder / "scores.json", scores)


def _learned(work: Path, start: str, params: Params) -> Path:
    """Folder of the encoder that a start begins with, which all decoders of a seed share."""
    out = work / "ssl" / start
    if not out.exists() and start == "supervised":
        name = params.model.encoder
        asked = FinetuneParams(encoder=name.removeprefix("vit:"), seed=params.seed, **CLASSIFIER)
        with staged_directory(out) as folder:
            judge(city_objects(), folder / "classifier", asked, context=RunContext(progress=True))
            found = import_file(folder / "classifier/model.safetensors", source=start, encoder=name)
            save_weights(folder / "encoder" / ENCODER, found.tensors, found.card)
    elif not out.exists():
        ssl_pretrain(
            out=out,
            model=params.model,
            params=params.ssl,
            seed=params.seed,
            context=RunContext(progress=True),
            source_train=work / "source/train",
            target_train=work / "target/train",
        )
    return out / "encoder"


def _target(stage: Path, target: Path) -> float:
    """MIoU on the target's test images."""
    model, _ = load_model(stage / "model.safetensors")
    return float(
        validate_split(model, PreparedSplit(target / "test"), batch_size=4, context=RunContext()).miou()
    )


def table(root: Path, seeds: list[int], decoders: list[str], starts: list[str]) -> str:
    """Means and standard errors over seeds in % mIoU, and the differences to the random start."""
    rows = []
    for decoder in decoders:
        found = {start: [_scores(root, seed, decoder, start) for seed in seeds] for start in starts}
        reference = found.get("random")
        for start, results in found.items():
            row: dict[str, Any] = {"decoder": decoder, "start": start}
            for name in ("source_only", "adapted", "source_val"):
                values = np.array([100 * result[name] for result in results])
                row[name] = _mean(values)
                if reference and name != "source_val":
                    row[f"{name} - random"] = _mean(values - [100 * result[name] for result in reference])
            if reference:
                steps = [
                    first_step(one["curve"], ref["curve"])
                    for one, ref in zip(results, reference, strict=True)
                ]
                row["steps to random's end"] = ", ".join("never" if s is None else str(s) for s in steps)
            row["seconds"] = f"{np.mean([result['seconds'] for result in results]):.0f}"
            rows.append(row)
    return f"{len(seeds)} seeds; mIoU in %, mean +- standard error\n\n{markdown_table(pd.DataFrame(rows))}"


def first_step(curve: list[list[float]], reference: list[list[float]]) -> int | None:
    """The first step at which a curve [(step, score)] reaches the last score of another; None = never.

    Example:
        >>> first_step([[10, 0.1], [20, 0.3]], [[10, 0.1], [20, 0.2]])
        20
    """
    return next((int(step) for step, score in curve if score >= reference[-1][1]), None)


def _scores(root: Path, seed: int, decoder: str, start: str) -> dict[str, Any]:
    path = root / f"seed{seed}" / decoder / start / "scores.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _mean(values: np.ndarray) -> str:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.1f} +- {error:.1f}"


def main(argv: list[str] | None = None) -> None:
    """Run everything that is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--decoders", nargs="+", choices=list(DECODERS), default=list(DECODERS))
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, help="work folder; by default one per parameter set")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    identity = [settings(0, "setr_pup", start, arguments.set).model_dump_json() for start in STARTS]
    key = hashlib.sha256("".join(identity).encode()).hexdigest()[:12]
    root = arguments.work or HERE.parent / "runs" / f"self-supervised-{key}"
    for seed in arguments.seeds:
        data(settings(seed, "setr_pup", "random", arguments.set), root / f"seed{seed}")
        for decoder in arguments.decoders:
            for start in arguments.starts:
                run(seed, decoder, start, root, arguments.set)
    text = table(root, arguments.seeds, arguments.decoders, arguments.starts)
    (root / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
