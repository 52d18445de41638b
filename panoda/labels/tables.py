"""The tables behind ``panoda.labels``: class names, palettes and remaps of the built-in label spaces.

Sources: the Cityscapes, CamVid, DensePASS, SynPASS, Stanford2D3D and NYU-v2 label definitions; ADE20K's
objectInfo150 (the first name of each class) and its published palette, in which classes 6 and 48 share a
colour. ``indoor13``, ``indoor8`` and ``nyu40`` take their colours from the bit-interleaving colour map of
PASCAL VOC (``generated_palette``), because their publishers give none or several.
"""

from __future__ import annotations

from collections.abc import Sequence

RGB = tuple[int, int, int]
Classes = tuple[tuple[str, RGB], ...]


def generated_palette(count: int) -> tuple[RGB, ...]:
    """``count`` distinct colours: entries 1, 2, ... of the PASCAL VOC colour map (entry 0 is black).

    Bits 0, 1, 2 of the entry's number are the highest bits of red, green and blue, bits 3, 4, 5 the next.
    """
    colours = []
    for number in range(1, count + 1):
        red = green = blue = 0
        for place in range(3):
            bits = number >> (3 * place)
            red |= (bits & 1) << (7 - place)
            green |= (bits >> 1 & 1) << (7 - place)
            blue |= (bits >> 2 & 1) << (7 - place)
        colours.append((red, green, blue))
    return tuple(colours)


def _generated(names: Sequence[str]) -> Classes:
    return tuple(zip(names, generated_palette(len(names)), strict=True))


CS19: Classes = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)
CS13: Classes = (*CS19[:12], CS19[13])
CAMVID11: Classes = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (0, 0, 192)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
SYNPASS22: Classes = (
    ("building", (70, 70, 70)),
    ("fence", (100, 40, 40)),
    ("other", (55, 90, 80)),
    ("pedestrian", (220, 20, 60)),
    ("pole", (153, 153, 153)),
    ("road line", (157, 234, 50)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("vegetation", (107, 142, 35)),
    ("vehicles", (0, 0, 142)),
    ("wall", (102, 102, 156)),
    ("traffic sign", (220, 220, 0)),
    ("sky", (70, 130, 180)),
    ("ground", (81, 0, 81)),
    ("bridge", (150, 100, 100)),
    ("rail track", (230, 150, 140)),
    ("guard rail", (180, 165, 180)),
    ("traffic light", (250, 170, 30)),
    ("static", (110, 190, 160)),
    ("dynamic", (170, 120, 50)),
    ("water", (45, 60, 150)),
    ("terrain", (145, 170, 100)),
)
_INDOOR13 = (
    "beam",
    "board",
    "bookcase",
    "ceiling",
    "chair",
    "clutter",
    "column",
    "door",
    "floor",
    "sofa",
    "table",
    "wall",
    "window",
)
INDOOR13 = _generated(_INDOOR13)
INDOOR8: Classes = tuple(INDOOR13[i] for i in (3, 4, 7, 8, 9, 10, 11, 12))
_NYU40 = """
wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk,
shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television,
paper, towel, shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag,
other structure, other furniture, other prop
"""
NYU40 = _generated([name.strip() for name in _NYU40.split(",")])
"""Ids are those of the files less one: file value 0 is unlabelled, 1 is wall (0 here)."""

_ADE150 = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind,
coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer,
swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning,
streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce,
vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
glass, clock, flag
"""
_ADE150_PALETTE = """
120 120 120, 180 120 120, 6 230 230, 80 50 50, 4 200 3, 120 120 80, 140 140 140, 204 5 255, 230 230 230,
4 250 7, 224 5 255, 235 255 7, 150 5 61, 120 120 70, 8 255 51, 255 6 82, 143 255 140, 204 255 4, 255 51 7,
204 70 3, 0 102 200, 61 230 250, 255 6 51, 11 102 255, 255 7 71, 255 9 224, 9 7 230, 220 220 220, 255 9 92,
112 9 255, 8 255 214, 7 255 224, 255 184 6, 10 255 71, 255 41 10, 7 255 255, 224 255 8, 102 8 255, 255 61 6,
255 194 7, 255 122 8, 0 255 20, 255 8 41, 255 5 153, 6 51 255, 235 12 255, 160 150 20, 0 163 255,
140 140 140, 250 10 15, 20 255 0, 31 255 0, 255 31 0, 255 224 0, 153 255 0, 0 0 255, 255 71 0, 0 235 255,
0 173 255, 31 0 255, 11 200 200, 255 82 0, 0 255 245, 0 61 255, 0 255 112, 0 255 133, 255 0 0, 255 163 0,
255 102 0, 194 255 0, 0 143 255, 51 255 0, 0 82 255, 0 255 41, 0 255 173, 10 0 255, 173 255 0, 0 255 153,
255 92 0, 255 0 255, 255 0 245, 255 0 102, 255 173 0, 255 0 20, 255 184 184, 0 31 255, 0 255 61, 0 71 255,
255 0 204, 0 255 194, 0 255 82, 0 10 255, 0 112 255, 51 0 255, 0 194 255, 0 122 255, 0 255 163, 255 153 0,
0 255 10, 255 112 0, 143 255 0, 82 0 255, 163 255 0, 255 235 0, 8 184 170, 133 0 255, 0 255 92, 184 0 255,
255 0 31, 0 184 255, 0 214 255, 255 0 112, 92 255 0, 0 224 255, 112 224 255, 70 184 160, 163 0 255,
153 0 255, 71 255 0, 255 0 163, 255 204 0, 255 0 143, 0 255 235, 133 255 0, 255 0 235, 245 0 255, 255 0 122,
255 245 0, 10 190 212, 214 255 0, 0 204 255, 20 0 255, 255 255 0, 0 153 255, 0 41 255, 0 255 204, 41 0 255,
41 255 0, 173 0 255, 0 245 255, 71 0 255, 122 0 255, 0 255 184, 0 92 255, 184 255 0, 0 133 255, 255 214 0,
25 194 194, 102 255 0, 92 0 255
"""


def _ade150() -> Classes:
    names = [name.strip() for name in _ADE150.split(",")]
    colours = [tuple(int(part) for part in colour.split()) for colour in _ADE150_PALETTE.split(",")]
    return tuple((name, (r, g, b)) for name, (r, g, b) in zip(names, colours, strict=True))


BUILT_IN: dict[str, Classes] = {
    "cs19": CS19,
    "cs13": CS13,
    "camvid11": CAMVID11,
    "synpass22": SYNPASS22,
    "indoor13": INDOOR13,
    "indoor8": INDOOR8,
    "nyu40": NYU40,
    "ade150": _ade150(),
}

# (from, to) -> {old id: new id}; ids not listed are dropped.
REMAPS: dict[tuple[str, str], dict[int, int]] = {
    ("cs19", "cs13"): {**{i: i for i in range(12)}, 12: 11, 13: 12, 14: 12, 15: 12, 17: 12, 18: 12},
    ("camvid11", "cs13"): {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 12, 9: 11},
    ("synpass22", "cs13"): {
        **{0: 2, 1: 4, 3: 11, 4: 5, 5: 0, 6: 0, 7: 1, 8: 8, 9: 12, 10: 3, 11: 7, 12: 10},
        **{17: 6, 21: 9},
    },
    ("indoor13", "indoor8"): {3: 0, 4: 1, 7: 2, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7},
    ("nyu40", "indoor8"): {0: 6, 1: 3, 4: 1, 5: 4, 6: 5, 7: 2, 8: 7, 21: 0},
}
