"""The label encoding of a declaration -> the look-up pairs that ``panoda.data.formats.decode`` reads by."""

from __future__ import annotations

import re
from pathlib import Path

from panoda.data.formats.dataset import Encoding
from panoda.data.formats.declaration import LabelEncoding, built_in
from panoda.data.formats.decode import colour_code
from panoda.labels import IGNORE_INDEX, LabelSpace, get_label_space, is_space_file
from panoda.system.errors import DataError

LOWEST, HIGHEST = -32768, 65535
"""Ids that a file of 8 or 16 bits can hold."""


def space_of(labels: LabelEncoding, declaration: str) -> str:
    """Name of the label space; that of a YAML file is its path, taken from the declaration's folder."""
    if not is_space_file(labels.space) or declaration in built_in():
        return labels.space
    return str(Path(declaration).expanduser().parent / Path(labels.space).expanduser())


def encoding_of(labels: LabelEncoding, declaration: str) -> Encoding:
    """Look-up pairs of a declared encoding.

    Without ``ids``, raw ids are those of the space and 255 is unlabelled.

    Raises:
        DataError: unknown space, an id or a colour that cannot be, or a class that the space does not have.
    """
    try:
        space = get_label_space(space_of(labels, declaration))
    except ValueError as error:
        raise DataError(f"{declaration}: labels.space: {error}") from error
    if labels.encoding == "palette":
        pairs = _palette_pairs(labels, space, declaration)
    else:
        pairs = _id_pairs(labels, space, declaration)
    for raw, new in pairs.items():
        if new != IGNORE_INDEX and not 0 <= new < space.num_classes:
            raise DataError(
                f"{declaration}: labels: {raw} becomes {new}, but {space.name} has classes "
                f"0..{space.num_classes - 1} (and 255 for ignored)"
            )
    return Encoding(kind=labels.encoding, table=tuple(pairs.items()), others=labels.others)


def _id_pairs(labels: LabelEncoding, space: LabelSpace, declaration: str) -> dict[int, int]:
    if labels.palette is not None:
        raise DataError(f"{declaration}: labels.palette needs encoding: palette")
    if labels.ids is None:
        pairs = {i: i for i in range(space.num_classes)} | {IGNORE_INDEX: IGNORE_INDEX}
    else:
        pairs = dict(labels.ids)
    clash = sorted(raw for raw in labels.void if pairs.get(raw, IGNORE_INDEX) != IGNORE_INDEX)
    if clash:
        raise DataError(
            f"{declaration}: labels.void lists {clash}, which are classes as well; decide for one"
        )
    pairs |= dict.fromkeys(labels.void, IGNORE_INDEX)
    wrong = [raw for raw in pairs if not LOWEST <= raw <= HIGHEST]
    if wrong:
        raise DataError(f"{declaration}: labels.ids: {wrong} do not fit into 16 bits")
    return pairs


def _palette_pairs(labels: LabelEncoding, space: LabelSpace, declaration: str) -> dict[int, int]:
    if labels.ids is not None or labels.void:
        raise DataError(
            f"{declaration}: labels.ids and labels.void need encoding: ids; list colours in palette"
        )
    if labels.palette is None:
        if len(set(space.palette)) < space.num_classes:
            raise DataError(
                f"{declaration}: {space.name} gives two classes one colour; write labels.palette out"
            )
        return {colour_code(*colour): i for i, colour in enumerate(space.palette)}
    pairs: dict[int, int] = {}
    for text, new in labels.palette.items():
        found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text)
        values = [int(value) for value in found.groups()] if found else [256]
        if max(values) > 255:
            raise DataError(
                f'{declaration}: labels.palette: {text!r}, expected "R,G,B" with values in 0..255'
            )
        pairs[colour_code(*values)] = new
    return pairs
