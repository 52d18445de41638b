"""Label spaces: class names, palettes and remaps, in one place.

Train ids run from 0 to K - 1; ``IGNORE_INDEX`` (255) is never a class. Sources: the Cityscapes,
CamVid and DensePASS label definitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORE_INDEX = 255


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes.

    Attributes:
        name: Short identifier used in params.yaml, indices and checkpoints.
        names: Class names; position = train id.
        palette: One (R, G, B) in 0..255 per class.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        """Refuse a palette that does not fit the names."""
        if len(self.names) != len(self.palette):
            raise ValueError(f"{self.name}: {len(self.names)} names but {len(self.palette)} colours")

    @property
    def num_classes(self) -> int:
        """K, the number of classes without ignore."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Train id of a class name; ValueError lists the names when it is unknown."""
        if name not in self.names:
            raise ValueError(f"{self.name} has no class {name!r}; it has {', '.join(self.names)}")
        return self.names.index(name)

    def colour_table(self) -> np.ndarray:
        """(256, 3) uint8 table from train id to RGB; ids outside the space are black."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: self.num_classes] = np.asarray(self.palette, dtype=np.uint8)
        return table

    def colourise(self, label: np.ndarray) -> np.ndarray:
        """(..., ) train ids in 0..255 -> (..., 3) uint8 RGB."""
        return self.colour_table()[np.asarray(label, dtype=np.uint8)]


_CS19 = (
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
_CS13 = (*_CS19[:12], _CS19[13])
_CAMVID11 = (
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


def _space(name: str, classes: tuple[tuple[str, tuple[int, int, int]], ...]) -> LabelSpace:
    return LabelSpace(name, tuple(c[0] for c in classes), tuple(c[1] for c in classes))


SPACES: dict[str, LabelSpace] = {
    space.name: space
    for space in (_space("cs19", _CS19), _space("cs13", _CS13), _space("camvid11", _CAMVID11))
}

# (from, to) -> {old id: new id}; ids not listed become IGNORE_INDEX.
REMAPS: dict[tuple[str, str], dict[int, int]] = {
    ("cs19", "cs13"): {**{i: i for i in range(12)}, 12: 11, 13: 12, 14: 12, 15: 12, 17: 12, 18: 12},
    ("camvid11", "cs13"): {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 12, 9: 11, 10: 255},
}


def get_label_space(name: str) -> LabelSpace:
    """The label space called ``name``; ValueError lists the known ones."""
    if name not in SPACES:
        raise ValueError(f"unknown label space {name!r}; known: {', '.join(SPACES)}")
    return SPACES[name]


def remap_table(source: str, target: str) -> np.ndarray:
    """(256,) uint8 look-up table from ids of one label space to ids of another.

    Ids that have no counterpart, ids outside the source space and 255 become ``IGNORE_INDEX``.

    Raises:
        ValueError: no remap between the two is known.
    """
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    if source == target:
        k = get_label_space(source).num_classes
        table[:k] = np.arange(k)
        return table
    if (source, target) not in REMAPS:
        known = ", ".join(f"{a}->{b}" for a, b in REMAPS)
        raise ValueError(f"no remap {source}->{target}; known: {known}")
    for old, new in REMAPS[source, target].items():
        table[old] = new
    return table


def shared_classes(source: str, target: str) -> tuple[int, ...]:
    """Ids of ``target`` that labels of ``source`` can take after the remap, ascending."""
    k = get_label_space(source).num_classes
    reached = set(remap_table(source, target)[:k].tolist()) - {IGNORE_INDEX}
    return tuple(sorted(reached))
