"""Raw items as a JSON file: how the items of a shard come to the worker that makes it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.prepare.finished import plain
from panoda.system.errors import DataError

_ENCODINGS = TypeAdapter(list[Encoding])
_ITEM = TypeAdapter(RawItem)


def write_items(path: Path, items: Iterable[RawItem]) -> None:
    """Write items; an encoding that many of them share is written once."""
    numbers: dict[Encoding, int] = {}
    rows = []
    for item in items:
        row: dict[str, Any] = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
        if item.encoding is not None:
            row["encoding"] = numbers.setdefault(item.encoding, len(numbers))
        rows.append(row)
    value = {"encodings": [dataclasses.asdict(encoding) for encoding in numbers], "items": rows}
    path.write_text(json.dumps(value, default=plain), encoding="utf-8")


def read_items(path: Path) -> list[RawItem]:
    """The items of a file, equal to those that were written; they share their encodings.

    Raises:
        DataError: the file is no such list.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        encodings = _ENCODINGS.validate_python(value["encodings"])
        items = []
        for row in value["items"]:
            number = row.pop("encoding")
            item = _ITEM.validate_python({**row, "encoding": None})
            found = None if number is None else encodings[number]
            items.append(dataclasses.replace(item, encoding=found))
        return items
    except (KeyError, IndexError, TypeError, json.JSONDecodeError, ValidationError) as error:
        raise DataError(f"{path}: not a list of raw items ({error}); delete it and start again") from error
