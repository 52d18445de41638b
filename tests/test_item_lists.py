from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.prepare.item_lists import read_items, write_items
from panoda.system.errors import DataError

PALETTE = Encoding("palette", ((0xFF8000, 3), (-1, 255)), others="ignore", black_is_void=True)
ITEMS = [
    RawItem("a", "train", "ulm", Path("/x/ä b.png"), Path("/x/a.png"), "pinhole", 90.0, encoding=PALETTE),
    RawItem(
        "b", "train", "ulm", Path("/x/b.png"), None, "pinhole", 90.5, encoding=dataclasses.replace(PALETTE)
    ),
    RawItem("c", "train", "", Path("/x/c.png"), None, "erp", 360.0, 45.0, -30.0, 0.1, 0.2, 0.3, (0, 7)),
]


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    write_items(tmp_path / "list", ITEMS)
    found = read_items(tmp_path / "list")
    for one, two in zip(found, ITEMS, strict=True):
        assert repr(one) == repr(two)  # nan is not equal to itself
        assert type(one.image) is type(two.image) and type(one.void_ids) is tuple
    assert math.isnan(found[0].lat_top_deg)
    assert found[0].encoding is found[1].encoding and hash(found[0].encoding) == hash(PALETTE)


def test_numpy_values_come_back_as_numbers(tmp_path: Path) -> None:
    item = dataclasses.replace(ITEMS[2], fov_x_deg=np.float32(360), void_ids=(np.int64(3),))
    write_items(tmp_path / "list", [item])
    assert read_items(tmp_path / "list")[0].void_ids == (3,)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"encodings": [], "items": [{"encoding": 3}]}', "\x80\x04\x95pickle", "[]"]
)
def test_another_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(DataError, match="list: not a list of raw items"):
        read_items(tmp_path / "list")
