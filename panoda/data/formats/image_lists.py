"""List files of a declared data set: which image has which label, group and split, one row each.

CSV with the columns ``image`` and, optionally, ``label``, ``group`` and ``split`` (comma, semicolon or tab;
UTF-8 or UTF-16; any line ends; empty lines count for nothing), or parquet. Every row is as long as the
header.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd

from panoda.system.errors import DataError
from panoda.system.files import read_text

COLUMNS = ("image", "label", "group", "split")
_EXPECTED = "expected image and, optionally, label, group and split"


@dataclass(frozen=True)
class ListRow:
    """One row.

    Attributes:
        where: File and line (of a parquet file: row), for messages.
        image: Path relative to the data set's folder, with / inside.
        label: The same of the label, or None.
        group: "" when the list says none.
        split: None when the list has no such column.
    """

    where: str
    image: str
    label: str | None
    group: str
    split: str | None


def read_image_list(path: Path) -> Iterator[ListRow]:
    """The rows of a list file; what it names need not exist.

    Raises:
        DataError: no such file, or not such a list; the message names the line.
    """
    try:
        rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
        roles: dict[str, str] = {}
        for where, cells in rows:
            image, label = (_relative(cells.get(column, ""), where) for column in ("image", "label"))
            if not image:
                raise DataError(f"{where}: no image; name one, or remove the row")
            for name, role in ((image, "image"), (label, "label")):
                if name and roles.setdefault(name, role) != role:
                    raise DataError(f"{where}: {name!r} is an image and a label; correct one of them")
            yield ListRow(where, image, label or None, cells.get("group", ""), cells.get("split"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such list file; add it or correct list_file in the declaration"
        ) from error
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: not a readable CSV or parquet list ({reason})") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, column -> cell) of every row that is not empty."""
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    # A file name may hold any of them, a column's name does not.
    delimiter = next((mark for mark in "\t;" if mark in first and "," not in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    begin = 1
    try:
        for found in reader:
            where, begin = f"{path}: line {begin}", reader.line_num + 1
            cells = [cell.strip() for cell in found]
            if not any(cells):
                continue
            if not header:
                header = _checked_header(cells, where)
            elif len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)} ({', '.join(header)}); "
                    "put names that hold the separator into double quotes, and remove separators at the end"
                )
            else:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: line {begin}: not CSV ({error}); correct the line") from error
    if not header:
        raise DataError(f"{path}: empty; {_EXPECTED} as the names of columns in the first line")


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    table = pd.read_parquet(path).fillna("").astype(str)
    table.columns = pd.Index(_checked_header([str(name) for name in table.columns], str(path)))
    for number, row in enumerate(table.to_dict("records"), start=1):
        yield f"{path}: row {number}", {str(column): cell.strip() for column, cell in row.items()}


def _checked_header(cells: list[str], where: str) -> list[str]:
    names = [cell.lower() for cell in cells]
    if "image" not in names or set(names) - set(COLUMNS):
        raise DataError(f"{where}: columns {', '.join(cells)}; {_EXPECTED}")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: columns {', '.join(cells)}; every name may stand there once")
    return names


def _relative(name: str, where: str) -> str:
    """A path as it is written on any system, with / inside; "" stays."""
    windows = PureWindowsPath(name)  # takes both separators
    if windows.anchor or ".." in windows.parts or name.startswith("~"):
        raise DataError(f"{where}: {name!r} must be a path below the data set's folder, relative to it")
    return PurePosixPath(windows.as_posix()).as_posix() if name else ""
