"""Which panoramas to label? Ten that ``panoda rank`` chooses against ten random ones, as one more labelled source.

``python -m benchmarks.few_labels`` takes data, source models and recipes of ``benchmarks.adaptation``. Of the target's
training images, a few get their labels: none, those that the source-only model ranks first, and random draws. They
train beside the source in each recipe: ``control`` (source training for as many steps) and ``default`` (adaptation).
One JSON per (seed, look set, recipe, choice) in a work folder; finished ones are not redone. Target labels are read for
the few images and by the evaluation, nowhere else.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.adaptation import (
    HERE,
    known_recipes,
    markdown_table,
    read_score,
    render,
    score,
    settings,
    source_model,
    start_of,
)
from panoda.data.formats.dataset import RawItem
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.prepare.prepare import prepare
from panoda.deployment.rank import rank_files
from panoda.deployment.view import Geometry
from panoda.stages.adapt import adapt
from panoda.system.context import RunContext
from panoda.system.files import staged_directory
from panoda.system.machine import cores

RECIPES = ("control", "default")
ROLE = "few"
"""Name of the further source."""


def pictures(here: Path) -> Path:
    """The target's training images and labels as files, which is what ``panoda rank`` reads."""
    out = here / "pictures"
    if not out.exists():
        split = PreparedSplit(here / "target/train")
        with staged_directory(out) as folder:
            for kind in ("images", "labels"):
                (folder / kind).mkdir()
            for sample in (split[index] for index in range(len(split))):
                name = f"{sample['id'].replace('/', '_')}.png"
                Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(folder / "images" / name)
                Image.fromarray(sample["label"].numpy()).save(folder / "labels" / name)
    return out


def choices(seed: int, work: Path, here: Path, count: int, draws: int) -> dict[str, list[str]]:
    """Choice -> names of the images that get their labels."""
    folder = pictures(here) / "images"
    split = PreparedSplit(here / "target/train")
    band = Geometry("band", lat_deg=(split.lat_top_deg, split.lat_bottom_deg))
    names = sorted(path.name for path in folder.iterdir())
    ranked = rank_files(
        work / "pretrain/model.safetensors",
        [folder / name for name in names],
        here / f"ranked{count}",
        count=count,
        geometry=band,
    )
    found: dict[str, list[str]] = {"none": []}
    found["ranked"] = [Path(str(image)).name for image in ranked.chosen["image"]]
    for draw in range(draws):
        random = np.random.default_rng([seed, draw])
        found[f"random{draw}"] = sorted(random.choice(names, count, replace=False).tolist())
    return found


def few_source(here: Path, folder: Path, names: list[str]) -> None:
    """``FOLDER/few/train``: the prepared split of these images, unless it is there."""
    if not (folder / ROLE).exists():
        split, files = PreparedSplit(here / "target/train"), pictures(here)
        items = [
            RawItem(
                id=Path(name).stem,
                split="train",
                group=ROLE,
                image=files / "images" / name,
                label=files / "labels" / name,
                projection="erp",
                fov_x_deg=360.0,
                lat_top_deg=split.lat_top_deg,
                lat_bottom_deg=split.lat_bottom_deg,
            )
            for name in names
        ]
        prepare(
            items,
            folder / ROLE,
            height=split.height,
            width=split.width,
            label_space_from=split.label_space,
            label_space_to=split.label_space,
            shard_images=len(items),
            progress=False,
        )


def begin(
    seed: int,
    looks: str,
    recipes: list[str],
    *,
    root: Path,
    overrides: list[str],
    count: int,
    draws: int,
) -> dict[str, list[str]]:
    """What the rows of a seed and look set share: their choices, prepared, and what the recipes start from."""
    torch.set_num_threads(1)
    work = root / f"seed{seed}"
    here = work / Path(looks).stem
    found = choices(seed, work, here, count, draws)
    for choice, names in found.items():
        if names:
            few_source(here, here / f"few_{choice}_{count}", names)
    for recipe in recipes:
        start_of(work, here, settings(seed, looks, overrides, known_recipes()[recipe]))
    return found


def row(recipe: str, choice: str, count: int, weight: float) -> str:
    """Name of a result."""
    return f"{recipe}_none" if choice == "none" else f"{recipe}_{choice}_{count}_{weight:g}"


def train(
    seed: int,
    looks: str,
    recipe: str,
    choice: str,
    names: list[str],
    *,
    root: Path,
    overrides: list[str],
    weight: float,
    count: int,
) -> None:
    """Train and score one row."""
    torch.set_num_threads(1)
    work = root / f"seed{seed}"
    here = work / Path(looks).stem
    name = row(recipe, choice, count, weight)
    if (here / f"{name}.json").exists():
        return
    params = settings(seed, looks, overrides, known_recipes()[recipe])
    start, out, began = start_of(work, here, params), here / f"run_{name}", time.perf_counter()
    further: dict[str, Any] = {}
    if names:
        further = {
            "more_sources": here / f"few_{choice}_{count}",
            "sources": {"source": 1.0, ROLE: weight},
        }
    adapt(
        checkpoint=start / "warmup/model.safetensors",
        source_train=work / "source/train",
        target_train=here / "target/train",
        pseudo_labels=start / "pseudo_labels",
        prototypes=start / "prototypes",
        out=out,
        params=params.adapt,
        seed=seed,
        context=RunContext(),
        **further,
    )
    score(out / "model.safetensors", work, here, name, seconds={"adapt": time.perf_counter() - began})


def table(
    root: Path,
    seeds: list[int],
    look_sets: list[str],
    recipes: list[str],
    draws: int,
    count: int,
    weight: float,
) -> str:
    """Mean IoU on the target's test images in %, a Markdown table per look set.

    Of the random draws the mean, their deviation, and the best one; a row is a seed, the last one the mean of all.
    """
    parts = []
    for looks in look_sets:
        rows = []
        for recipe in recipes:
            found = []
            for seed in seeds:
                value = {
                    choice: 100
                    * read_score(root, seed, looks, row(recipe, choice, count, weight))["target_test"]["miou"]
                    for choice in ("none", "ranked", *(f"random{draw}" for draw in range(draws)))
                }
                random = np.array([value[f"random{draw}"] for draw in range(draws)])
                beaten = float((random < value["ranked"]).sum())
                found.append(
                    [value["none"], value["ranked"], random.mean(), random.std(), random.max(), beaten]
                )
            for seed, numbers in [*zip(seeds, found, strict=True), ("mean", np.mean(found, axis=0))]:
                none, ranked, mean, deviation, best, beaten = numbers
                rows.append(
                    {
                        "recipe": recipe,
                        "seed": seed,
                        "no label": f"{none:.1f}",
                        "ranked": f"{ranked:.1f}",
                        f"random, mean of {draws}": f"{mean:.1f}",
                        "deviation": f"{deviation:.1f}",
                        "best draw": f"{best:.1f}",
                        "ranked - random": f"{ranked - mean:+.1f}",
                        "draws beaten": f"{beaten:g}",
                    }
                )
        title = f"Looks: {looks}; {count} labelled panoramas with weight {weight:g} beside the source's 1"
        parts.append(f"{title}; mIoU on target test, %\n\n{markdown_table(pd.DataFrame(rows))}")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Run everything that is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--looks", nargs="+", default=["development"])
    parser.add_argument("--recipes", nargs="+", choices=list(known_recipes()), default=list(RECIPES))
    parser.add_argument("--count", type=int, default=10, help="panoramas that get their labels")
    parser.add_argument("--draws", type=int, default=5, help="random draws of as many")
    parser.add_argument(
        "--weight", type=float, default=0.25, help="of the labelled panoramas beside the source's 1"
    )
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--work", type=Path, help="work folder; one of benchmarks.adaptation is used further")
    arguments = parser.parse_args(argv)
    overrides = arguments.set
    identity = settings(0, "development", overrides).model_dump_json() + (HERE / "recipes.yaml").read_text()
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    root = arguments.work or HERE.parent / "runs" / f"few-labels-{key}"
    render(arguments.seeds, arguments.looks, root, overrides)
    common: dict[str, Any] = {"root": root, "overrides": overrides, "count": arguments.count}
    with ProcessPoolExecutor(arguments.processes) as pool:
        for job in [pool.submit(source_model, seed, root, overrides) for seed in arguments.seeds]:
            job.result()
        places = [(seed, looks) for seed in arguments.seeds for looks in arguments.looks]
        begun = [
            pool.submit(begin, *place, arguments.recipes, draws=arguments.draws, **common) for place in places
        ]
        jobs = [
            pool.submit(train, *place, recipe, choice, names, weight=arguments.weight, **common)
            for place, start in zip(places, begun, strict=True)
            for choice, names in start.result().items()
            for recipe in arguments.recipes
        ]
        for job in jobs:
            job.result()
    text = table(
        root,
        arguments.seeds,
        arguments.looks,
        arguments.recipes,
        arguments.draws,
        arguments.count,
        arguments.weight,
    )
    (root / "few_labels.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
