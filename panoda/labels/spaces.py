"""Label spaces: class names, palettes and remaps, in YAML files; the built-in ones lie in ``built_in``.

Train ids run from 0 to K - 1; ``IGNORE_INDEX`` (255) is never a class. The path of a file of one's own is its
space's name everywhere (relative paths start at the project root)::

    names: [road, lane, house]
    palette: [[128, 64, 128], [255, 255, 255], [70, 70, 70]]   # optional
    to:                                                        # optional: remaps into other spaces
      cs13: {road: road, lane: road, house: building}          # classes left out are dropped
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from panoda.system.files import explained_error, read_yaml

IGNORE_INDEX = 255
MAX_CLASSES = 254
"""254 is left free: decoding marks values it does not know with it."""
SPACES = ("cs19", "cs13", "camvid11", "synpass22", "indoor13", "indoor8", "nyu40", "ade150")
"""Names of the built-in spaces."""
Remaps = dict[str, dict[str, str | None]]
"""Target space -> own class -> class of that space."""


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes.

    Attributes:
        names: Class names; position = train id.
        palette: One (R, G, B) in 0..255 per class.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        """Refuse a palette that does not fit the names, and names that occur twice."""
        if len(self.names) != len(self.palette):
            raise ValueError(f"{self.name}: {len(self.names)} names but {len(self.palette)} colours")
        if not 0 < len(self.names) <= MAX_CLASSES:
            raise ValueError(f"{self.name}: {len(self.names)} classes, expected 1 to {MAX_CLASSES}")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.name}: names must differ; {', '.join(twice)} occur more than once")

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


@dataclass(frozen=True)
class RemapReport:
    """What a remap loses, by class name.

    Attributes:
        dropped: Source classes that become ignored.
        merged: Target class -> the source classes (two or more) that become it.
        empty: Target classes that no source class becomes.
    """

    dropped: tuple[str, ...]
    merged: dict[str, tuple[str, ...]]
    empty: tuple[str, ...]


def generated_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` distinct colours: entries 1, 2, ... of the PASCAL VOC colour map (entry 0 is black).

    Bits 0, 1, 2 of the entry's number are the highest bits of red, green and blue, bits 3, 4, 5 the next.
    """

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * place + first) & 1) << (7 - place) for place in range(3))

    return tuple((channel(n, 0), channel(n, 1), channel(n, 2)) for n in range(1, count + 1))


def is_space_file(name: str) -> bool:
    """Whether a label space is named by the path of a YAML file."""
    return name.endswith((".yaml", ".yml"))


def get_label_space(name: str) -> LabelSpace:
    """The label space called ``name``, or defined by the YAML file of that path.

    Raises:
        ValueError: unknown name (the message lists the known ones), or not a valid file.
    """
    return _space(name)[0]


def stored_space(
    name: str,
    names: Sequence[str] | None,
    palette: Sequence[Sequence[int]] | None,
) -> LabelSpace:
    """The label space that a file of ours keeps, so that it needs neither this table nor a YAML file.

    Files that were written before spaces were kept have a name without ``names`` or ``palette``; what they
    lack comes from the space of that name, or, of a class list without colours, is generated.
    """
    if names is None:
        return get_label_space(name)
    if palette is None:
        try:
            known = get_label_space(name)
        except ValueError:
            known = None
        same = known is not None and known.names == tuple(names)
        palette = known.palette if known is not None and same else generated_palette(len(names))
    return LabelSpace(name, tuple(names), tuple((r, g, b) for r, g, b in palette))


def remap_targets(source: str) -> list[str]:
    """Names of the other label spaces that ``source`` has a remap to."""
    return list(_space(source)[1])


def remap_table(source: str, target: str) -> np.ndarray:
    """(256,) uint8 look-up table from ids of one label space to ids of another.

    Ids that have no counterpart, ids outside the source space and 255 become ``IGNORE_INDEX``.

    Raises:
        ValueError: no remap between the two is known.
    """
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for old, new in _remap(source, target).items():
        table[old] = new
    return table


def remap_report(source: str, target: str) -> RemapReport:
    """Which classes a remap drops, merges and leaves without pixels.

    Raises:
        ValueError: no remap between the two is known.

    Example:
        >>> remap_report("cs19", "cs13").merged["person"]
        ('person', 'rider')
    """
    old, new = get_label_space(source), get_label_space(target)
    table = remap_table(source, target)[: old.num_classes]
    members = {
        name: tuple(n for n, to in zip(old.names, table, strict=True) if to == i)
        for i, name in enumerate(new.names)
    }
    return RemapReport(
        dropped=tuple(n for n, to in zip(old.names, table, strict=True) if to == IGNORE_INDEX),
        merged={name: classes for name, classes in members.items() if len(classes) > 1},
        empty=tuple(name for name, classes in members.items() if not classes),
    )


def _remap(source: str, target: str) -> dict[int, int]:
    """{old id: new id}; ids not listed are dropped."""
    if source == target:
        return {i: i for i in range(get_label_space(source).num_classes)}
    own = _space(source)[1]
    for name, classes in own.items():
        if name == target or (is_space_file(name) and _same_file(Path(source).parent / name, target)):
            return _by_id(source, target, classes)
    known = ", ".join(f"{source}->{name}" for name in own) or "none"
    raise ValueError(
        f"no remap {source}->{target}; known: {known}; a label space of a YAML file gives its own under to:"
    )


def _by_id(source: str, target: str, classes: Mapping[str, str | None]) -> dict[int, int]:
    old, new = get_label_space(source), get_label_space(target)
    try:
        return {old.index(a): new.index(b) for a, b in classes.items() if b is not None}
    except ValueError as error:
        raise ValueError(f"{source}: to: {target}: {error}") from error


def _same_file(one: Path, two: str) -> bool:
    return one.expanduser().resolve() == Path(two).expanduser().resolve()


def _space(name: str) -> tuple[LabelSpace, Remaps]:
    if name in SPACES:
        return _built_in(name)
    if not is_space_file(name):
        known = ", ".join(SPACES)
        raise ValueError(f"unknown label space {name!r}; known: {known}, or the path of a YAML file")
    return _read_file(name, Path(name).expanduser())


@cache
def _built_in(name: str) -> tuple[LabelSpace, Remaps]:
    return _read_file(name, Path(__file__).parent / "built_in" / f"{name}.yaml")


def _read_file(name: str, path: Path) -> tuple[LabelSpace, Remaps]:
    """The space that a YAML file defines, and its remaps by class name."""
    try:
        tree = read_yaml(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{name}: no such label space file; relative paths start at the project root, in a declaration "
            "at the folder of its file"
        ) from error
    except (OSError, ValueError) as error:
        reason = explained_error(error).removeprefix(f"{path}: ")
        raise ValueError(f"{name}: cannot be read as YAML ({reason})") from error
    if not isinstance(tree, dict) or not {"names"} <= set(tree) <= {"names", "palette", "to"}:
        found = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{name}: expected the keys names and, optionally, palette and to; found {found}")
    names, remaps = tree["names"], tree.get("to") or {}
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{name}: names must be a list of texts; found {names!r}")
    if not isinstance(remaps, dict) or not all(_is_remap(classes) for classes in remaps.values()):
        raise ValueError(f"{name}: to: must be space -> {{own class: class of that space, or null}}")
    palette = (
        generated_palette(len(names)) if tree.get("palette") is None else _palette(name, tree["palette"])
    )
    return LabelSpace(name, tuple(names), palette), remaps


def _is_remap(classes: Any) -> bool:
    return isinstance(classes, dict) and all(
        isinstance(a, str) and (b is None or isinstance(b, str)) for a, b in classes.items()
    )


def _palette(name: str, colours: Any) -> tuple[tuple[int, int, int], ...]:
    if isinstance(colours, list) and all(
        isinstance(c, list) and len(c) == 3 and all(type(v) is int and 0 <= v <= 255 for v in c)
        for c in colours
    ):
        return tuple((c[0], c[1], c[2]) for c in colours)
    raise ValueError(f"{name}: palette must be a list of [R, G, B] in 0..255, one per class")
