"""Miniature trees in the official layouts and encodings, with the quirks of the published files.

Every function writes a tree below ``root`` and returns the labels it should decode to: id of the item ->
(H, W) ids of the raw label space, 255 where ignored. Images show their labels: one colour per class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.label_spaces import generated_palette
from panoda.labels import get_label_space

SIZE = (64, 128)
Labels = dict[str, np.ndarray]
CITYSCAPES_IDS = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12},
    **{26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}
CAMVID32 = {
    **{"128,128,128": 0, "192,0,128": 1, "0,128,64": 1, "128,0,0": 1, "64,0,64": 1, "64,192,0": 1},
    **{"192,192,128": 2, "0,0,64": 2, "128,64,128": 3, "128,0,192": 3, "192,0,64": 3, "0,0,192": 4},
    **{"64,192,128": 4, "128,128,192": 4, "128,128,0": 5, "192,192,0": 5, "192,128,128": 6},
    **{"128,128,64": 6, "0,64,64": 6, "64,64,128": 7, "64,0,128": 8, "64,128,192": 8, "192,128,192": 8},
    **{"192,64,128": 8, "128,64,64": 8, "64,64,0": 9, "192,128,64": 9, "64,0,192": 9, "64,128,64": 9},
    **{"0,128,192": 10, "192,0,192": 10, "0,0,0": 255},
}
STANFORD_NAMES = 600
"""Entries of the miniature semantic_labels.json: more than 256, so that two channels are needed."""


def values(seed: int, choices: Sequence[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) int64 in blocks of 8 x 8 that together hold every choice, as far as there are blocks."""
    random = np.random.default_rng(seed)
    blocks = (size[0] // 8) * (size[1] // 8)
    drawn = random.permutation(np.resize(np.asarray(choices), blocks)).reshape(size[0] // 8, size[1] // 8)
    return drawn.repeat(8, axis=0).repeat(8, axis=1)


def picture(raw: np.ndarray, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 image of raw values, never black."""
    colours = np.array(generated_palette(254), dtype=np.int64) // 2 + 60
    noise = np.random.default_rng(seed).integers(-10, 11, (*raw.shape, 3))
    return np.clip(colours[raw % 254] + noise, 1, 255).astype(np.uint8)


def look_up(raw: np.ndarray, ids: dict[int, int]) -> np.ndarray:
    """Raw values to ids, pixel by pixel; what is not listed is 255."""
    return np.vectorize(lambda value: ids.get(int(value), 255), otypes=[np.uint8])(raw)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)  # type: ignore[arg-type]


def cityscapes(root: Path) -> Labels:
    """Two cities; labelIds in 8 bits with -1 as 255, and in 16 bits with -1 as 65535; a test split."""
    expected: Labels = {}
    cities = {"train": ("aachen", "bad-honnef"), "val": ("ulm",)}
    for number, (split, city) in enumerate((s, c) for s, names in cities.items() for c in names):
        for frame in range(2):
            seed = 10 * number + frame
            raw = values(seed, range(-1, 34))
            name = f"{city}_{frame:06d}_000019"
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", picture(raw, seed))
            deep = city == "ulm"
            stored = raw.astype(np.uint16) if deep else raw.astype(np.uint8)
            save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", stored)
            save(root / "gtFine" / split / city / f"{name}_gtFine_color.png", picture(raw, seed))
            expected[f"{city}/{frame:06d}_000019"] = look_up(raw, CITYSCAPES_IDS)
    save(root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", picture(raw, 0))
    return expected


def densepass(root: Path) -> Labels:
    """The same numbers in two cities; validation images as <n>.png and <n>_.png, labels in both ways."""
    for number, city in enumerate(("Athens", "Zurich")):
        for n in (1, 2):
            raw = values(n + 10 * number, range(19))
            save(root / "leftImg8bit/train" / city / f"{n}.png", picture(raw, n))
    expected: Labels = {}
    for n, image, label in (
        (1, "1.png", "1_labelTrainIds.png"),
        (2, "2_.png", "2_labelTrainIds.png"),
        (3, "3.png", "3_.png"),
        (4, "4.PNG", "4_labelTrainIds.PNG"),
    ):
        raw = values(n, [*range(19), 255])
        save(root / "leftImg8bit/val/cs" / image, picture(raw, n))
        save(root / "gtFine/val/cs" / label, raw.astype(np.uint8))
        expected[f"cs/{n}"] = raw.astype(np.uint8)
    return expected


def synpass(root: Path) -> Labels:
    """Raw ids 0..22 in files called trainID; the same map and frame in two weathers."""
    expected: Labels = {}
    for split in ("train", "val", "test"):
        for number, weather in enumerate(("cloud", "rain")):
            raw = values(number + 5 * len(split), range(23))
            save(root / "img" / weather / split / "MAP_1_point2/000000.jpg", picture(raw, number), quality=95)
            save(
                root / "semantic" / weather / split / "MAP_1_point2/000000_trainID.png", raw.astype(np.uint8)
            )
            ids = {v: v - 1 for v in range(1, 23)}
            expected[f"{split}:{weather}/MAP_1_point2/000000"] = look_up(raw, ids)
    return expected


def camvid(root: Path) -> Labels:
    """The copies with 11 classes; one label is a palette PNG."""
    expected: Labels = {}
    for split in ("train", "val"):
        for frame in (30, 60):
            raw = values(frame + len(split), range(12))
            save(root / split / f"0001TP_{frame:06d}.png", picture(raw, frame))
            label = Image.fromarray(raw.astype(np.uint8))
            if frame == 60:
                label.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
            save(root / f"{split}annot" / f"0001TP_{frame:06d}.png", label)
            expected[f"{split}:0001TP/{frame:06d}"] = look_up(raw, {i: i for i in range(11)})
    return expected


def camvid32(root: Path) -> Labels:
    """32 colours; one label is a palette image with the same colours."""
    expected: Labels = {}
    colours = np.array([[int(v) for v in text.split(",")] for text in CAMVID32], dtype=np.uint8)
    ids = np.array(list(CAMVID32.values()), dtype=np.uint8)
    for recording, frame in (("0001TP", "006690"), ("Seq05VD", "f00000")):
        raw = values(len(recording), range(32))
        label = Image.fromarray(colours[raw])
        if recording == "Seq05VD":
            label = label.quantize(colors=32, dither=Image.Dither.NONE)
            assert (np.asarray(label.convert("RGB")) == colours[raw]).all()
        save(root / "701_StillsRaw_full" / f"{recording}_{frame}.png", picture(raw, 1))
        save(root / "LabeledApproved_full" / f"{recording}_{frame}_L.png", label)
        expected[f"{recording}/{frame}"] = ids[raw]
    return expected


def ade20k(root: Path) -> Labels:
    """Sizes vary; images are colour, grey, CMYK and upside down by EXIF, suffixes in both cases."""
    expected: Labels = {}
    top = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for n, suffix in enumerate(("jpg", "JPG", "jpg", "jpg"), start=1):
            size = (64, 128) if n < 4 else (128, 160)
            raw = values(n + 10 * (short == "val"), [0, 1, 2, 13, 21, 150], size)
            image = Image.fromarray(picture(raw, n))
            options: dict[str, object] = {"quality": 95}
            if n == 2:
                image = image.convert("L")
            if n == 3:
                image = image.convert("CMYK")
            if n == 4:  # stored turned by 180 degrees, with the EXIF tag that says so
                image = image.transpose(Image.Transpose.ROTATE_180)
                options["exif"] = Image.Exif()
                options["exif"][0x0112] = 3  # type: ignore[index]
            name = f"ADE_{short}_{n:08d}"
            save(top / "images" / split / f"{name}.{suffix}", image, format="JPEG", **options)
            save(top / "annotations" / split / f"{name}.png", raw.astype(np.uint8))
            expected[name] = look_up(raw, {v: v - 1 for v in range(1, 151)})
    return expected


def cvrg_pano(root: Path) -> Labels:
    """Images and masks, whose ids nobody knows."""
    for split in ("train", "test"):
        raw = values(len(split), range(20))
        save(root / split / "rgb/a1.png", picture(raw, 1))
        save(root / split / "mask/a1.png", raw.astype(np.uint8))
    return {}


def stanford_names() -> list[str]:
    """``semantic_labels.json``: <UNK> first, then instances of all classes in turn."""
    classes = get_label_space("indoor13").names
    names = [f"{classes[i % 13]}_{i // 13}_office_1_area_{1 + i % 6}" for i in range(STANFORD_NAMES - 1)]
    return ["<UNK>_0_<UNK>_0_0", *names]


def stanford2d3d(root: Path, areas: Sequence[str] = ("1", "2", "3", "4", "5a", "5b", "6")) -> Labels:
    """Both variants; instance colours, 13,13,13 and black pixels; ``rgb`` inside a file name."""
    expected: Labels = {}
    root.mkdir(parents=True, exist_ok=True)
    (root / "semantic_labels.json").write_text(json.dumps(stanford_names()))
    for number, area in enumerate(areas):
        for variant, stem in (
            ("data", f"camera_rgb{number}_office_1_frame_0_domain"),
            ("pano", f"camera_{number}f_office_1_frame_equirectangular_domain"),
        ):
            raw = values(number + 100 * (variant == "pano"), range(0, STANFORD_NAMES, 5))
            code = np.stack([np.zeros_like(raw), raw // 256, raw % 256], axis=-1).astype(np.uint8)
            ids = np.where(raw == 0, 255, (raw - 1) % 13)
            image = picture(raw, number)
            code[:8], ids[:8] = 13, 255  # no data
            code[8:16, :8, 0], ids[8:16, :8] = 1, 255  # R != 0
            image[-8:], ids[-8:] = 0, 255  # black pole
            base = root / f"area_{area}" / variant
            save(base / "rgb" / f"{stem}_rgb.png", image)
            save(base / "semantic" / f"{stem}_semantic.png", code)
            if variant == "data":
                (base / "pose").mkdir(parents=True, exist_ok=True)
                pose = {"field_of_view_rads": math.radians(50 + number)}
                (base / "pose" / f"{stem}_pose.json").write_text(json.dumps(pose))
            expected[f"area_{area}/{stem.removesuffix('_domain')}"] = ids.astype(np.uint8)
    return expected


def structured3d(root: Path) -> Labels:
    """Scenes of every split, an invalid one, a broken and a truncated file, a missing label."""
    expected: Labels = {}
    for scene in (0, 2999, 3000, 3250, 1155):
        raw = values(scene, range(41))
        full = root / f"scene_{scene:05d}/2D_rendering/485142/panorama/full"
        for shade, light in enumerate(("rawlight", "coldlight", "warmlight")):
            save(full / f"rgb_{light}.png", picture(raw, shade))
        save(full / "semantic.png", raw.astype(np.uint8))
        if scene != 1155:
            expected[f"scene_{scene:05d}/485142"] = look_up(raw, {v: v - 1 for v in range(1, 41)})
    rooms = root / "scene_00000/2D_rendering"
    for room in ("1", "2", "3"):
        for name in ("rgb_rawlight.png", "semantic.png"):
            save(
                rooms / room / "panorama/full" / name, picture(raw, 7) if "rgb" in name else raw.astype("u1")
            )
    broken = bytearray((rooms / "1/panorama/full/rgb_rawlight.png").read_bytes())
    broken[len(broken) // 2] ^= 0xFF  # as a bad CRC in the archive leaves it
    (rooms / "1/panorama/full/rgb_rawlight.png").write_bytes(broken)
    cut = rooms / "2/panorama/full/semantic.png"
    cut.write_bytes(cut.read_bytes()[:100])
    (rooms / "3/panorama/full/semantic.png").unlink()
    return expected
