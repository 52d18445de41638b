"""Models side by side on the embedded city: source-only, equal-step control, adapted; same data and steps.

``python -m benchmarks.models`` trains every row of models.yaml from random weights with the demo's recipe on
the demo's looks and fresh worlds, and prints one table. What is finished is not done again.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import yaml

from benchmarks.adaptation import HERE, data, markdown_table, read_score, recipes, settings, source_model
from panoda.models.core.checkpoint import load_model
from panoda.system.machine import cores

LOOKS = "development"
RESULTS = {"source_only": "source-only", "control": "control", "default": "adapted"}


def known_models() -> dict[str, list[str]]:
    """Name -> changes to params.yaml."""
    return dict(yaml.safe_load((HERE / "models.yaml").read_text()))


def run(name: str, seed: int, root: Path, overrides: list[str]) -> None:
    """Train, adapt and score one model."""
    work = root / name / f"seed{seed}"
    (work / LOOKS).mkdir(parents=True, exist_ok=True)
    shared = root / "data" / f"seed{seed}"
    for link, folder in ((work / "source", shared / "source"), (work / LOOKS / "target", shared / "target")):
        if not link.exists():
            link.symlink_to(folder.resolve())
    changes = [*known_models()[name], *overrides]
    source_model(seed, root / name, changes)
    recipes(seed, LOOKS, ["control", "default"], root / name, changes)


def table(root: Path, names: list[str], seed: int) -> str:
    """One row per model; mIoU in %, target test unless said otherwise."""
    rows = []
    for name in names:
        model, card = load_model(root / name / f"seed{seed}" / "pretrain/model.safetensors")
        found = {key: read_score(root / name, seed, LOOKS, key) for key in RESULTS}
        row = {"model": name, "parameters, M": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}"}
        row["source val"] = f"{100 * found['source_only']['source_val']['miou']:.1f}"
        for key, title in RESULTS.items():
            row[title] = f"{100 * found[key]['target_test']['miou']:.1f}"
        gain = found["default"]["target_test"]["miou"] - found["control"]["target_test"]["miou"]
        row["adapted - control"] = f"{100 * gain:+.1f}"
        row["8 frequent, adapted"] = f"{100 * found['default']['target_test']['miou_frequent']:.1f}"
        rows.append(row)
        steps = card.params["pretrain"]["iterations"]
    return f"Seed {seed}, one run each, {steps} source steps\n\n" + markdown_table(pd.DataFrame(rows))


def main() -> None:
    """Run everything that is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=known_models(), default=list(known_models()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "benchmark-models")
    arguments = parser.parse_args()
    root, seed = arguments.work, arguments.seed
    shared = root / "data" / f"seed{seed}"
    shared.mkdir(parents=True, exist_ok=True)
    data(settings(seed, LOOKS, arguments.set), shared)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for job in [pool.submit(run, name, seed, root, arguments.set) for name in arguments.models]:
            job.result()
    print(table(root, arguments.models, seed))


if __name__ == "__main__":
    main()
