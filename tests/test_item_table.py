"""Items on disk: order, positions, limits, doubles, and fields that come back as they went in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.prepare.item_table import ItemTable

ENCODING = Encoding(kind="ids", table=((1, 0), (2, 1)))


def item(number: int, **fields: object) -> RawItem:
    values: dict = {
        "id": f"i{number}",
        "split": "train",
        "group": f"g{number % 2}",
        "image": Path(f"/raw/{number}.png"),
        "label": Path(f"/raw/{number}_label.png"),
        "projection": "pinhole",
        "fov_x_deg": 60.0 + number / 7,
        "encoding": ENCODING,
    }
    return RawItem(**values | fields)


def test_items_come_back_as_they_went_in():
    sphere = {"projection": "erp", "fov_x_deg": 360.0, "lat_top_deg": 90.0, "lat_bottom_deg": -90.0}
    items = [item(0), item(1, label=None), item(2, **sphere, crop_top=0.1, void_ids=(9,), encoding=None)]
    with ItemTable(iter(items)) as table:
        found = list(table.split("train"))
    for one, two in zip(found, items, strict=True):
        assert repr(one) == repr(two)  # nan is not equal to itself
        assert one.encoding is two.encoding


def test_splits_keep_their_order_and_positions():
    items = [item(n, split="train" if n % 3 else "test") for n in range(10)]
    with ItemTable(iter(items)) as table:
        assert table.splits == ["test", "train"] and len(table.split("train")) == 6
        train = table.split("train")
        assert [i.id for i in train] == ["i1", "i2", "i4", "i5", "i7", "i8"]
        assert [i.id for i in train.between(4, 99)] == ["i7", "i8"] and train[3].id == "i5"
        assert [i.id for i in table.split("train", 2)] == ["i1", "i5"]
        assert len(table.split("train", 99)) == 6
        with pytest.raises(IndexError, match="no item 6"):
            train[6]


def test_a_second_item_of_one_id_is_left_out_and_told():
    items = [item(0), item(1), item(1, image=Path("/raw/again.png")), item(1, split="val")]
    with ItemTable(iter(items)) as table:
        assert len(table.split("train")) == 2 and len(table.split("val")) == 1
        [(second, first)] = table.doubles
        assert (second.image, first, table.doubled) == (Path("/raw/again.png"), Path("/raw/1.png"), 1)


def test_a_thousand_doubles_are_counted_and_some_kept():
    copies = (item(0, image=Path(f"/raw/{n}.png")) for n in range(1500))
    with ItemTable(copies) as table:
        assert table.doubled == 1499 and len(table.doubles) == 20 and len(table.split("train")) == 1


def test_what_items_share_is_kept_once():
    items = (dataclasses.replace(item(n), lat_top_deg=float("nan")) for n in range(2500))
    with ItemTable(items) as table:
        assert len(table.split("train")) == 2500 and len(table._shared) == 1
