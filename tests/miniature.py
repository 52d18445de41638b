"""Miniature trees in the official layouts and encodings, with the quirks of the published files.

Every function writes a tree below ``root`` and returns the labels it should decode to: id of the item ->
(H, W) ids of the raw label space, 255 where ignored. Images are views of the embedded city; its classes stand
for those of the data set (street furniture for furniture, where the set is of rooms).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from city_views import SIZE, add_card, panorama, picture, pinhole, scene, values, view
from PIL import Image

from panoda.labels import get_label_space

__all__ = ["SIZE", "picture", "values"]
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

# Raw value of each class of cs19: road, sidewalk, building, wall, fence, pole, traffic light, traffic sign,
# vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle.
CS19 = np.arange(19)
CITYSCAPES = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
SYNPASS = np.array([7, 8, 1, 11, 2, 5, 18, 12, 9, 22, 13, 4, 4, 10, 10, 10, 10, 10, 10])
CAMVID = np.array([3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10])
CAMVID_COLOURS = np.array([8, 11, 3, 5, 19, 6, 18, 16, 14, 15, 0, 25, 29, 20, 21, 22, 23, 30, 29])
"""Places in CAMVID32."""
ADE20K = np.array([7, 12, 2, 1, 33, 94, 137, 44, 5, 10, 3, 13, 13, 21, 84, 81, 81, 117, 128])
CVRG = np.array([1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 14, 15, 16, 17, 17, 18, 19])
CVRG_IDS = {
    **{1: 0, 2: 1, 4: 2, 5: 3, 6: 4, 8: 5, 9: 6, 10: 7, 11: 8, 12: 9, 13: 10, 14: 11, 15: 13, 16: 14},
    **{17: 15, 18: 17, 19: 18},
}
"""What somebody who looks at masks may find: the publishers name the classes, not their ids."""
INDOOR13 = np.array([8, 8, 11, 2, 12, 6, 0, 1, 5, 10, 3, 4, 4, 9, 9, 7, 7, 4, 4])
NYU40 = np.array([2, 20, 1, 10, 9, 15, 35, 11, 40, 7, 22, 5, 5, 6, 4, 8, 8, 39, 39])
OWN = np.array([0, 0, 1, 1, 1, 4, 4, 4, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4])
OWN_COLOURS = ((128, 64, 128), (70, 70, 70), (107, 142, 35), (70, 130, 180), (220, 20, 60), (0, 0, 0))
"""Way, house, green, sky, thing of a data set of one's own; black is unlabelled."""


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
            image, raw = scene(10 * number + frame, pinhole(49), CITYSCAPES, range(-1, 34))
            name = f"{city}_{frame:06d}_000019"
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
            stored = raw.astype(np.uint16) if city == "ulm" else raw.astype(np.uint8)
            save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", stored)
            save(root / "gtFine" / split / city / f"{name}_gtFine_color.png", picture(raw, frame))
            expected[f"{city}/{frame:06d}_000019"] = look_up(raw, CITYSCAPES_IDS)
    save(root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", view(30, pinhole(49))[0])
    return expected


def densepass(root: Path) -> Labels:
    """The same numbers in two cities; validation images as <n>.png and <n>_.png, labels in both ways."""
    for number, city in enumerate(("Athens", "Zurich")):
        for n in (1, 2):
            save(root / "leftImg8bit/train" / city / f"{n}.png", view(10 + n + 10 * number, panorama(35))[0])
    expected: Labels = {}
    for n, name, label in (
        (1, "1.png", "1_labelTrainIds.png"),
        (2, "2_.png", "2_labelTrainIds.png"),
        (3, "3.png", "3_.png"),
        (4, "4.PNG", "4_labelTrainIds.PNG"),
    ):
        image, raw = scene(n, panorama(35), CS19, [*range(19), 255])
        save(root / "leftImg8bit/val/cs" / name, image)
        save(root / "gtFine/val/cs" / label, raw.astype(np.uint8))
        expected[f"cs/{n}"] = raw.astype(np.uint8)
    return expected


def synpass(root: Path) -> Labels:
    """Raw ids 0..22 in files called trainID; the same map and frame in two weathers."""
    expected: Labels = {}
    for split in ("train", "val", "test"):
        for number, weather in enumerate(("cloud", "rain")):
            image, raw = scene(number + 5 * len(split), panorama(), SYNPASS, range(23))
            name = f"{weather}/{split}/MAP_1_point2/000000"
            save(root / f"img/{name}.jpg", image, quality=95)
            save(root / f"semantic/{name}_trainID.png", raw.astype(np.uint8))
            ids = {v: v - 1 for v in range(1, 23)}
            expected[f"{split}:{weather}/MAP_1_point2/000000"] = look_up(raw, ids)
    return expected


def camvid(root: Path) -> Labels:
    """The copies with 11 classes; one label is a palette PNG."""
    expected: Labels = {}
    for split in ("train", "val", "test"):
        for frame in (30, 60):
            image, raw = scene(frame + len(split), pinhole(60), CAMVID, range(12))
            save(root / split / f"0001TP_{frame:06d}.png", image)
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
        image, raw = scene(len(recording), pinhole(60), CAMVID_COLOURS, range(32))
        label = Image.fromarray(colours[raw])
        if recording == "Seq05VD":
            label = label.quantize(colors=32, dither=Image.Dither.NONE)
            assert (np.asarray(label.convert("RGB")) == colours[raw]).all()
        save(root / "701_StillsRaw_full" / f"{recording}_{frame}.png", image)
        save(root / "LabeledApproved_full" / f"{recording}_{frame}_L.png", label)
        expected[f"{recording}/{frame}"] = ids[raw]
    return expected


def ade20k_scene(n: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Image and raw label of one of the four images of ``training`` or ``validation``, upright."""
    size = SIZE if n < 4 else (128, 160)
    return scene(n + 10 * (split == "validation"), pinhole(60, size), ADE20K, range(151))


def ade20k(root: Path) -> Labels:
    """Sizes vary; images are colour, grey, CMYK and turned by EXIF, suffixes in both cases."""
    expected: Labels = {}
    top = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for n, suffix in enumerate(("jpg", "JPG", "jpg", "jpg"), start=1):
            pixels, raw = ade20k_scene(n, split)
            image = Image.fromarray(pixels)
            options: dict[str, object] = {"quality": 95}
            if n == 2:
                image = image.convert("L")
            if n == 3:
                image = image.convert("CMYK")
            if n == 4:  # stored turned to the left, as cameras do, with the EXIF tag that says so
                image = image.transpose(Image.Transpose.ROTATE_90)
                options["exif"] = Image.Exif()
                options["exif"][0x0112] = 6  # type: ignore[index]
            name = f"ADE_{short}_{n:08d}"
            save(top / "images" / split / f"{name}.{suffix}", image, format="JPEG", **options)
            save(top / "annotations" / split / f"{name}.png", raw.astype(np.uint8))
            expected[name] = look_up(raw, {v: v - 1 for v in range(1, 151)})
    return expected


def cvrg_pano(root: Path) -> Labels:
    """Images and masks, whose ids nobody knows; the labels in cs19 are those of CVRG_IDS."""
    expected: Labels = {}
    for split in ("train", "test"):
        image, raw = scene(len(split), panorama(), CVRG, range(20))
        save(root / split / "rgb/a1.png", image)
        save(root / split / "mask/a1.png", raw.astype(np.uint8))
        expected[f"{split}:a1"] = look_up(raw, CVRG_IDS)
    return expected


def own(root: Path) -> Labels:
    """A user's panoramas: a list of files that follow no pattern, labels in five colours and black."""
    expected: Labels = {}
    colours = np.array(OWN_COLOURS, dtype=np.uint8)
    rows = ["image,label,split"]
    for n, (split, name) in enumerate((("train", "north/a"), ("train", "b"), ("val", "south/c"))):
        image, raw = scene(n, panorama(45), OWN, range(6))
        save(root / f"{name}.webp", image, lossless=True)
        save(root / f"colours/{n}.png", colours[raw])
        rows.append(f"{name}.webp,colours/{n}.png,{split}")
        expected[f"{split}:{name}"] = np.where(raw == 5, 255, raw).astype(np.uint8)
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return expected


def stanford_names() -> list[str]:
    """``semantic_labels.json``: <UNK> first, then instances of all classes in turn."""
    classes = get_label_space("indoor13").names
    names = [f"{classes[i % 13]}_{i // 13}_office_1_area_{1 + i % 6}" for i in range(STANFORD_NAMES - 1)]
    return ["<UNK>_0_<UNK>_0_0", *names]


def stanford_scene(seed: int, *, fov_x_deg: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Image without black and indices into ``stanford_names``: every 16 x 16 pixels another instance."""
    camera = panorama() if fov_x_deg is None else pinhole(fov_x_deg)
    pixels, label = view(seed, camera)
    y, x = np.indices(label.shape) // 16
    image, raw = np.maximum(pixels, 1), 1 + INDOOR13[label] + 13 * (8 * y + x + seed % 7)
    add_card(image, raw, range(0, STANFORD_NAMES, 5), seed)
    return image, raw


def stanford2d3d(root: Path) -> Labels:
    """Both variants; instance colours, 13,13,13 and black pixels; ``rgb`` inside a file name."""
    expected: Labels = {}
    root.mkdir(parents=True, exist_ok=True)
    (root / "semantic_labels.json").write_text(json.dumps(stanford_names()))
    for number, area in enumerate(("1", "2", "3", "4", "5a", "5b", "6")):
        for variant, stem in (
            ("data", f"camera_rgb{number}_office_1_frame_0_domain"),
            ("pano", f"camera_{number}f_office_1_frame_equirectangular_domain"),
        ):
            fov = 50 + number if variant == "data" else None
            image, raw = stanford_scene(number, fov_x_deg=fov)
            code = np.stack([np.zeros_like(raw), raw // 256, raw % 256], axis=-1).astype(np.uint8)
            ids = np.where(raw == 0, 255, (raw - 1) % 13)
            code[:8], ids[:8] = 13, 255  # no data
            code[8:16, :8, 0], ids[8:16, :8] = 1, 255  # R != 0
            image[-8:], ids[-8:] = 0, 255  # black pole
            base = root / f"area_{area}" / variant
            save(base / "rgb" / f"{stem}_rgb.png", image)
            save(base / "semantic" / f"{stem}_semantic.png", code)
            if fov is not None:
                (base / "pose").mkdir(parents=True, exist_ok=True)
                pose = {"field_of_view_rads": math.radians(fov)}
                (base / "pose" / f"{stem}_pose.json").write_text(json.dumps(pose))
            expected[f"area_{area}/{stem.removesuffix('_domain')}"] = ids.astype(np.uint8)
    return expected


def structured3d_scene(number: int, light: str = "rawlight") -> tuple[np.ndarray, np.ndarray]:
    """Image in one of the lights and raw NYU40 label."""
    image, raw = scene(number, panorama(), NYU40, range(41))
    gain = {"rawlight": (1.0, 1.0, 1.0), "coldlight": (0.8, 0.9, 1.0), "warmlight": (1.0, 0.9, 0.7)}[light]
    return (image * np.array(gain)).astype(np.uint8), raw


def structured3d(root: Path) -> Labels:
    """Scenes of every split, an invalid one, a broken and a truncated file, a missing label."""
    expected: Labels = {}
    for number in (0, 2999, 3000, 3250, 1155):
        full = root / f"scene_{number:05d}/2D_rendering/485142/panorama/full"
        for light in ("rawlight", "coldlight", "warmlight"):
            image, raw = structured3d_scene(number, light)
            save(full / f"rgb_{light}.png", image)
        save(full / "semantic.png", raw.astype(np.uint8))
        if number != 1155:
            expected[f"scene_{number:05d}/485142"] = look_up(raw, {v: v - 1 for v in range(1, 41)})
    rooms = root / "scene_00000/2D_rendering"
    image, raw = structured3d_scene(7)
    for room in ("1", "2", "3"):
        save(rooms / room / "panorama/full/rgb_rawlight.png", image)
        save(rooms / room / "panorama/full/semantic.png", raw.astype(np.uint8))
    broken = bytearray((rooms / "1/panorama/full/rgb_rawlight.png").read_bytes())
    broken[len(broken) // 2] ^= 0xFF  # as a bad CRC in the archive leaves it
    (rooms / "1/panorama/full/rgb_rawlight.png").write_bytes(broken)
    cut = rooms / "2/panorama/full/semantic.png"
    cut.write_bytes(cut.read_bytes()[:100])
    (rooms / "3/panorama/full/semantic.png").unlink()
    return expected
