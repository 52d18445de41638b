"""How far does each look of the embedded city lie from the source looks? No label and no model is used.

``python -m benchmarks.looks`` renders the same worlds in every built-in look with the target camera of
params.yaml and prints, per look, the Frechet distance between its images' colour statistics (mean and
deviation of R, G and B, in 0..255) and those of the source looks. Looks are designed with it: how far
they lie from the source can be stated before any model has seen them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.linalg import sqrtm

from panoda.city.dataset import write_city
from panoda.city.looks import FINAL_LOOKS, built_in_looks
from panoda.config import CityDataset, CitySplit, load_params

SOURCE_LOOKS = ("northern", "harbour")
"""Those of params.yaml."""
WORLD_SEED = 90_000
"""World seeds of no split of any scenario or benchmark."""


def statistics(look: str, images: int) -> np.ndarray:
    """(images, 6) mean and deviation of R, G and B of a look's images, in 0..255."""
    params = load_params(Path("params.yaml")).data.target.dataset
    assert isinstance(params, CityDataset)
    split = CitySplit(images=images, seed=WORLD_SEED, labels=False)
    city = params.model_copy(update={"looks": {look: None}, "splits": {"all": split}, "images_per_world": 2})
    with tempfile.TemporaryDirectory() as folder:
        write_city(Path(folder) / "city", city, progress=False)
        files = sorted(Path(folder).rglob("images/**/*.png"))
        pixels = [np.asarray(Image.open(f).convert("RGB"), dtype=np.float64).reshape(-1, 3) for f in files]
    return np.array([np.concatenate([p.mean(axis=0), p.std(axis=0)]) for p in pixels])


def frechet(one: np.ndarray, two: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to the rows of two arrays (n, D)."""
    a, b = np.cov(one.T), np.cov(two.T)
    shift = np.square(one.mean(axis=0) - two.mean(axis=0)).sum()
    spread = np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    return float(np.sqrt(max(0.0, shift + spread)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24, help="images per look")
    parser.add_argument("--looks", nargs="+", default=list(built_in_looks()), help="all by default")
    arguments = parser.parse_args()
    chosen = dict.fromkeys([*SOURCE_LOOKS, *arguments.looks])
    found = {look: statistics(look, arguments.images) for look in chosen}
    source = np.concatenate([found[look] for look in SOURCE_LOOKS])
    print("| look | set | distance | mean R, G, B | deviation R, G, B |\n| --- | --- | --- | --- | --- |")
    for look, rows in found.items():
        group = "source" if look in SOURCE_LOOKS else "final" if look in FINAL_LOOKS else "development"
        numbers = [" ".join(f"{v:.0f}" for v in part) for part in np.split(rows.mean(axis=0), 2)]
        print(f"| {look} | {group} | {frechet(rows, source):.0f} | {numbers[0]} | {numbers[1]} |")


if __name__ == "__main__":
    main()
