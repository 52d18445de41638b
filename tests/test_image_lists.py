"""List files: read as their writers meant them, or refused with file and line."""

from __future__ import annotations

import pandas as pd
import pytest

from panoda.data.formats.image_lists import read_image_list
from panoda.system.errors import DataError

PAIRS = [("img/one.png", "lab/one.png"), ("img/two.png", None)]


def rows(path):
    return [(row.image, row.label) for row in read_image_list(path)]


@pytest.mark.parametrize(
    "text",
    [
        "image,label\nimg/one.png,lab/one.png\nimg/two.png,\n",
        "image,label\nimg/one.png,lab/one.png\nimg/two.png,",
        "label,image\nlab/one.png,img/one.png\n,img/two.png\n",
        "image,label\r\nimg/one.png,lab/one.png\r\n\r\n,\r\nimg/two.png,\r\n",
        "image,label\rimg/one.png,lab/one.png\rimg/two.png,\r",
        "image;label\nimg/one.png;lab/one.png\nimg/two.png;\n",
        "image\tlabel\nimg/one.png\tlab/one.png\nimg/two.png\t\n",
        ' Image , Label \n img/one.png , lab/one.png \n"img/two.png", ""\n',
        "image,label\nimg\\one.png,.\\lab\\one.png\n./img//two.png,\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_is_understood(tmp_path, text, encoding):
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    assert rows(tmp_path / "list.csv") == PAIRS


def test_names_with_separators_in_quotes(tmp_path):
    (tmp_path / "list.csv").write_text('image,label\n"a, b.png",c.png\n')
    assert rows(tmp_path / "list.csv") == [("a, b.png", "c.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,label\nimg/one.png,lab/one.png,\n",
            r"line 2: 3 cells, but the header has 2 \(image, label\)",
        ),
        ("image,label\n\na.png,b.png\nc.png\n", "line 4: 1 cells, but the header has 2"),
        ("image,label\na, b.png,c.png\n", "line 2: 3 cells.*into double quotes"),
        ("image,label,\na.png,b.png,\n", "line 1: columns image, label, ; expected image"),
        ("image,label,image\na.png,b.png,c.png\n", "line 1: .*every name may stand there once"),
        ("image,mask\na.png,b.png\n", "line 1: columns image, mask; expected image and, optionally, label"),
        ("img/one.png lab/one.png\n", "line 1: columns img/one.png lab/one.png; expected image"),
        ('image,label\na.png,"b.png\nc.png,d.png\n', "line 2: not CSV .*correct the line"),
        ("image,label\na.png,b.png\n,c.png\n", "line 3: no image; name one"),
        ("image,label\na.png,b.png\nb.png,\n", "line 3: 'b.png' is an image and a label"),
        ("image,label\na.png,a.png\n", "line 2: 'a.png' is an image and a label"),
        ("image\nC:\\data\\a.png\n", "line 2: .*must be a path below the data set's folder"),
        ("image\n..\\a.png\n", "line 2: .*must be a path below"),
        ("image\n~/a.png\n", "line 2: .*must be a path below"),
        ("image\n/data/a.png\n", "line 2: .*must be a path below"),
        ("\n\n", "empty; expected image and"),
        ("image\na\0.png\n", "not a readable .*zero bytes, so no text"),
    ],
)
def test_what_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"list\.csv: {message}"):
        rows(path)


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "list.csv").write_bytes("image\na.png\nStraße.png\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"list\.csv: not a readable .*line 3: not UTF-8.*save the file as UTF-8"
    ):
        rows(tmp_path / "list.csv")


def test_parquet(tmp_path):
    table = pd.DataFrame({"image": ["img\\one.png", "img/two.png"], "label": ["lab/one.png", None]})
    table.to_parquet(tmp_path / "list.parquet")
    assert rows(tmp_path / "list.parquet") == PAIRS
    table.assign(image=["a.png", None]).to_parquet(tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"list\.parquet: row 2: no image"):
        rows(tmp_path / "list.parquet")
