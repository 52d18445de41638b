"""The contact sheet shows images, labels over them where there are any, and the legend's colours."""

from __future__ import annotations

import numpy as np
from PIL import Image
from raw_data import erp_item, run_prepare, write_pair

from panoda.data.prepare.contact_sheet import CELL_WIDTH, COLUMNS, GAP, LINE, contact_sheet
from panoda.labels import get_label_space


def test_a_row_per_split(tmp_path):
    image, label = write_pair(tmp_path, "a")
    Image.new("RGB", (128, 64), (200, 100, 0)).save(image)
    ids = np.full((64, 128), 255, np.uint8)
    ids[:, :64] = 10  # sky on the left, nothing on the right
    Image.fromarray(ids).save(label)
    run_prepare([erp_item(image, label), erp_item(image, label, split="test")], tmp_path / "labelled")
    run_prepare([erp_item(image, None)], tmp_path / "bare", label_space_from=None)
    folders = [tmp_path / "bare/train", tmp_path / "labelled/test"]
    sheet = contact_sheet(folders, get_label_space("cs19"))
    assert sheet.dtype == np.uint8 and sheet.shape[1] == COLUMNS * (CELL_WIDTH + GAP) + GAP
    height = CELL_WIDTH // 2
    for number, left in enumerate([(200, 100, 0), (135, 115, 90)]):  # (200,100,0) and sky (70,130,180), mixed
        middle = number * (LINE + height + GAP) + LINE + height // 2
        assert sheet[middle, GAP + CELL_WIDTH // 4].tolist() == list(left)
        assert sheet[middle, GAP + 3 * CELL_WIDTH // 4].tolist() == [200, 100, 0]
        assert sheet[middle, 2 * GAP + CELL_WIDTH + 5].tolist() == [255, 255, 255]  # one image only
    colours = {tuple(c) for c in sheet[2 * (LINE + height + GAP) :].reshape(-1, 3).tolist()}
    space = get_label_space("cs19")
    assert space.palette[10] in colours and space.palette[0] not in colours


def test_it_is_written_beside_the_splits(tmp_path):
    items = [erp_item(*write_pair(tmp_path, f"i{n}")) for n in range(7)]
    run_prepare(items, tmp_path / "out")
    shown = np.asarray(Image.open(tmp_path / "out/contact_sheet.png"))
    expected = contact_sheet([tmp_path / "out/train"], get_label_space("cs19"))
    np.testing.assert_array_equal(shown, expected)
