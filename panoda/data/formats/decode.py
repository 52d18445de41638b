"""Raw label pixels -> ids of the raw label space, by look-up tables.

Every encoding becomes one table: 256 entries for 8-bit ids, 65536 for 16-bit ids, 2^24 for colours. The
tables of the last few encodings are kept; they are shared by all threads and never written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.data.formats.dataset import Encoding
from panoda.data.formats.images import read_label, to_colours, to_ids
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError

UNKNOWN = 254
"""In a table: the value is listed nowhere. No label space has a class of this id."""
LISTED = 10
"""Wrong values listed in one message."""


@dataclass(frozen=True)
class Decoded:
    """A label file, decoded once.

    Attributes:
        ids: (H, W) uint8, ids of the raw label space or 255; the caller's own copy.
        wrong: Value that the encoding does not know -> pixels, most frequent first; ids are written as
            numbers, colours as "R,G,B". Such pixels are 255 in ``ids``, whether or not the encoding ignores
            them.
        orientation: EXIF orientation of the file, 1..8; ``ids`` are not turned.
    """

    ids: np.ndarray
    wrong: dict[str, int]
    orientation: int = 1


def decode(path: Path, encoding: Encoding) -> Decoded:
    """Read a label file; values outside the encoding are counted, not refused.

    Raises:
        DataError: unreadable file or wrong number of channels.
    """
    image, orientation = read_label(path)
    look_up = _colours if encoding.kind == "palette" else _ids
    raw, ids = look_up(image, path, encoding)
    unknown = ids == UNKNOWN
    if not unknown.any():
        return Decoded(ids, {}, orientation)
    wrong = {_text(value, encoding): count for value, count in _count(raw[unknown]).items()}
    ids[unknown] = IGNORE_INDEX
    return Decoded(ids, wrong, orientation)


def decode_label(path: Path, encoding: Encoding) -> Decoded:
    """Read a label file; values outside the encoding are refused unless it ignores them.

    Raises:
        DataError: unreadable file, wrong number of channels, or values that the encoding does not know.
    """
    label = decode(path, encoding)
    if label.wrong and encoding.others == "error":
        raise DataError(_message(path, encoding, label.wrong))
    return label


def ignore_black(ids: np.ndarray, image: Image.Image) -> None:
    """Set ids (H, W) to 255, in place, where their RGB image of the same size is black."""
    ids[~np.asarray(image).any(axis=2)] = IGNORE_INDEX


def colour_code(red: int, green: int, blue: int) -> int:
    """R * 65536 + G * 256 + B, the raw value of a colour."""
    return red << 16 | green << 8 | blue


def _ids(image: Image.Image, path: Path, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Raw values (H, W) int32 and ids (H, W) uint8, 255 or UNKNOWN."""
    raw = to_ids(image, path)
    if image.mode in ("L", "P", "1"):
        return raw, _id_table(encoding.table, 8)[raw]
    known = _id_table(encoding.table, 16)[raw & 0xFFFF]
    known[(raw < -32768) | (raw > 65535)] = UNKNOWN
    return raw, known


def _colours(image: Image.Image, path: Path, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    rgb = np.asarray(to_colours(image, path)).astype(np.int32)
    raw = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    known = _colour_table(encoding.table)[raw]
    if encoding.red_is_void:
        known[(known == UNKNOWN) & (rgb[..., 0] != 0)] = IGNORE_INDEX
    return raw, known


@lru_cache(maxsize=16)
def _id_table(pairs: tuple[tuple[int, int], ...], bits: int) -> np.ndarray:
    """(2 ** bits,) uint8."""
    size = 1 << bits
    table = np.full(size, UNKNOWN, dtype=np.uint8)
    # Negative ids first: where a file's own id has the same bits, that one counts.
    for raw, new in sorted(pairs, key=lambda pair: pair[0] >= 0):
        if -size // 2 <= raw < size:
            table[raw % size] = new
    table.flags.writeable = False
    return table


@lru_cache(maxsize=4)
def _colour_table(pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(2 ** 24,) uint8."""
    table = np.full(1 << 24, UNKNOWN, dtype=np.uint8)
    codes, ids = zip(*pairs, strict=True) if pairs else ((), ())
    table[np.array(codes, dtype=np.int64)] = np.array(ids, dtype=np.uint8)
    table.flags.writeable = False
    return table


def _count(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    order = np.lexsort((found, -counts))
    return {int(found[i]): int(counts[i]) for i in order}


def _message(path: Path, encoding: Encoding, wrong: dict[str, int]) -> str:
    listed = ", ".join(f"{value} ({n} pixels)" for value, n in list(wrong.items())[:LISTED])
    more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
    what = "colours" if encoding.kind == "palette" else "label ids"
    return f"{path}: {what} outside the space: {listed}{more}; expected {_listed(encoding)}"


def _listed(encoding: Encoding) -> str:
    values = sorted(raw for raw, _ in encoding.table)
    if encoding.kind == "palette":
        texts = [_text(value, encoding) for value in values]
    else:
        runs: list[list[int]] = []
        for value in values:
            if runs and value == runs[-1][1] + 1:
                runs[-1][1] = value
            else:
                runs.append([value, value])
        texts = [str(a) if a == b else f"{a}..{b}" for a, b in runs]
    more = f" and {len(texts) - 40} more" if len(texts) > 40 else ""
    return f"{' '.join(texts[:40])}{more}; correct the file, or the encoding of the data set"


def _text(value: int, encoding: Encoding) -> str:
    if encoding.kind == "ids":
        return str(value)
    return f"{value >> 16},{value >> 8 & 255},{value & 255}"
