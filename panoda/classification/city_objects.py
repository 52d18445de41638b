"""Objects of the embedded city as folders of classes: what stands in the centre of a crop.

Rendered once, as ordinary files: open the folder to see what the classes look like.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from skimage.util import view_as_windows

from panoda.city.dataset import write_city
from panoda.config import CameraParams, CityDataset, CitySplit
from panoda.labels import get_label_space
from panoda.system.files import staged_directory

FOLDER = Path("data/city_objects")
RECORD = "city_objects.json"
CLASSES = (
    "road",
    "sidewalk",
    "building",
    "fence",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "car",
)
CORE = 9
"""Pixels of the side of the middle, ``CORE_SHARE`` of which must be of the class."""
CORE_SHARE = 0.6


PARAMS = {
    "train_images": 160,
    "val_images": 64,
    "crop": 64,
    "per_class": 120,
    "per_image": 3,
    "height": 256,
    "seed": 910_000,
}
"""City images that the crops are cut from; side of a crop in pixels; crops of a class in a split, and of one image, at
most; height of a city image, twice as wide and showing 90 degrees; seed of the first training world (val's are 10,000
further on), far from those of the scenarios. They decide every byte."""


def city_objects(folder: Path = FOLDER, *, progress: bool = False) -> Path:
    """The data set, rendered where ``folder`` does not hold it already.

    Writes ``train/CLASS/*.png``, ``val/CLASS/*.png`` and city_objects.json, all or nothing.

    Raises:
        ValueError: too few images for even one crop of a class.
    """
    record = folder / RECORD
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) == PARAMS:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.city.") as work:
        city = Path(work) / "city"
        write_city(city, _city(), progress=progress)
        with staged_directory(folder) as aside:
            for split in ("train", "val"):
                _write_split(city / split, aside / split)
            (aside / RECORD).write_text(json.dumps(PARAMS, indent=2) + "\n", encoding="utf-8")
    return folder


def _city() -> CityDataset:
    camera = CameraParams(
        projection="pinhole", height=PARAMS["height"], width=2 * PARAMS["height"], fov_x_deg=90.0
    )
    return CityDataset(
        kind="city",
        camera=camera,
        looks=dict.fromkeys(("northern", "harbour", "southern", "evening")),
        splits={
            "train": CitySplit(images=PARAMS["train_images"], seed=PARAMS["seed"]),
            "val": CitySplit(images=PARAMS["val_images"], seed=PARAMS["seed"] + 10_000),
        },
    )


def _write_split(city: Path, out: Path) -> None:
    """Cut the crops of a split; every class gets the same number."""
    space, crop = get_label_space("cs19"), PARAMS["crop"]
    places: dict[str, list[tuple[str, int, int]]] = {name: [] for name in CLASSES}
    for path in sorted((city / "labels").glob("*.png")):
        label = np.asarray(Image.open(path))
        rng = np.random.default_rng((PARAMS["seed"], int(path.stem)))
        for name in CLASSES:
            spots = _centres(label == space.index(name), crop)
            chosen = rng.permutation(len(spots))[: PARAMS["per_image"]]
            places[name] += [(path.stem, int(spots[k, 0]), int(spots[k, 1])) for k in chosen]
    count = min(PARAMS["per_class"], *map(len, places.values()))
    if not count:
        rare = min(places, key=lambda name: len(places[name]))
        raise ValueError(
            f"{city.name}: no crop of class {rare} in {len(list((city / 'labels').iterdir()))} city images; "
            "raise train_images and val_images of PARAMS"
        )
    half = crop // 2
    for name, found in places.items():
        folder = out / name.replace(" ", "_")
        folder.mkdir(parents=True)
        # Spread over all images, and so over all looks.
        for number in np.linspace(0, len(found) - 1, count).round().astype(int):
            stem, y, x = found[number]
            image = Image.open(city / "images" / f"{stem}.png")
            image.crop((x - half, y - half, x - half + crop, y - half + crop)).save(
                folder / f"{stem}_{y}_{x}.png"
            )


def _centres(mask: np.ndarray, crop: int) -> np.ndarray:
    """(N, 2) rows and columns of pixels of a class, most of whose surroundings are of it, a crop around each."""
    half, edge = crop // 2, CORE // 2
    core = view_as_windows(mask, (CORE, CORE)).mean(axis=(2, 3)) > CORE_SHARE
    good = np.zeros_like(mask)
    good[edge:-edge, edge:-edge] = core & mask[edge:-edge, edge:-edge]
    inner = np.zeros_like(mask)
    inner[half:-half, half:-half] = True
    return np.argwhere(good & inner)
