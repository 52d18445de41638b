"""Raw items on disk instead of in memory: a temporary SQLite table, read by split and position.

A data set of any size is listed once, item by item, into the table; whoever works through it holds a few
items at a time. Ids are unique within a split; what comes second is left out and told.
"""

from __future__ import annotations

import dataclasses
import math
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from panoda.data.formats.dataset import RawItem

_CHUNK = 1000
"""Items written at a time."""
_DOUBLES = 20
_BLANK: dict[str, Any] = {
    "id": "",
    "split": "",
    "group": "",
    "image": Path(),
    "label": None,
    "fov_x_deg": 0.0,
}
"""Fields with a column of their own; items share the others by the thousand."""


class ItemTable:
    """Items of every split in the order in which they came; a context manager that removes its file.

    Args:
        items: Items of all splits, consumed one by one.

    Attributes:
        doubles: (second item, image of the first) where two have one id within a split; the first few.
        doubled: How many there are.
    """

    def __init__(self, items: Iterable[RawItem]) -> None:
        """List the items: some 200 bytes each, in a file of SQLite's own in the system's temporary folder."""
        self._db = sqlite3.connect("", isolation_level=None)
        self._shared: list[RawItem] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._counts: dict[str, int] = {}
        self.doubles: list[tuple[RawItem, Path]] = []
        self.doubled = 0
        self._db.execute("PRAGMA cache_size = -512")  # KiB
        self._db.execute(
            "CREATE TABLE items (split TEXT, position INTEGER, id TEXT, grouped TEXT, image TEXT, label TEXT,"
            " fov REAL, shared INTEGER, PRIMARY KEY (split, position), UNIQUE (split, id)) WITHOUT ROWID"
        )
        source = iter(items)
        while chunk := list(islice(source, _CHUNK)):
            self._db.execute("BEGIN")
            for item in chunk:
                self._add(item)
            self._db.execute("COMMIT")

    def __enter__(self) -> ItemTable:
        """Return self."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the file."""
        self.close()

    def close(self) -> None:
        """Remove the file."""
        self._db.close()

    @property
    def splits(self) -> list[str]:
        """Split names in order of appearance."""
        return list(self._counts)

    def split(self, name: str, limit: int | None = None) -> SplitItems:
        """The items of a split, or at most ``limit`` of them, spread evenly over it."""
        found = self._counts[name]
        return SplitItems(self, name, found, found if limit is None else min(limit, found))

    def at(self, split: str, position: int) -> RawItem:
        """One item."""
        row = self._db.execute(
            "SELECT id, grouped, image, label, fov, shared FROM items WHERE split = ? AND position = ?",
            (split, position),
        ).fetchone()
        name, group, image, label, fov, shared = row
        return dataclasses.replace(
            self._shared[shared],
            id=name,
            split=split,
            group=group,
            image=Path(image),
            label=None if label is None else Path(label),
            fov_x_deg=float("nan") if fov is None else fov,
        )

    def _add(self, item: RawItem) -> None:
        position = self._counts.setdefault(item.split, 0)
        label = None if item.label is None else str(item.label)
        row = (item.id, item.group, str(item.image), label, item.fov_x_deg, self._number(item))
        try:
            self._db.execute(
                "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (item.split, position, *row)
            )
        except sqlite3.IntegrityError:
            first = self._db.execute(
                "SELECT image FROM items WHERE split = ? AND id = ?", (item.split, item.id)
            ).fetchone()[0]
            self.doubled += 1
            if len(self.doubles) < _DOUBLES:
                self.doubles.append((item, Path(first)))
            return
        self._counts[item.split] += 1

    def _number(self, item: RawItem) -> int:
        """Number of what the item shares with others; one encoding object serves many items."""
        shared = dataclasses.replace(item, **_BLANK)
        values = (getattr(shared, f.name) for f in dataclasses.fields(shared) if f.name != "encoding")
        key = (*("nan" if isinstance(v, float) and math.isnan(v) else v for v in values), id(item.encoding))
        number = self._numbers.setdefault(key, len(self._shared))
        if number == len(self._shared):
            self._shared.append(shared)
        return number


class SplitItems:
    """Items of one split by position, read from the table when they are asked for."""

    def __init__(self, table: ItemTable, name: str, found: int, count: int) -> None:
        """``count`` of the ``found`` items, spread evenly."""
        self._table, self.name, self._found, self._count = table, name, found, count

    def __len__(self) -> int:
        """Number of items."""
        return self._count

    def __getitem__(self, index: int) -> RawItem:
        """Item ``index``."""
        if not 0 <= index < self._count:
            raise IndexError(f"split {self.name}: no item {index}, there are {self._count}")
        return self._table.at(self.name, index * self._found // self._count)

    def __iter__(self) -> Iterator[RawItem]:
        """All items in order."""
        return self.between(0, self._count)

    def between(self, start: int, stop: int) -> Iterator[RawItem]:
        """Items from ``start`` to before ``stop``, in order."""
        return (self[i] for i in range(start, min(stop, self._count)))
