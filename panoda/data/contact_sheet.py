"""A picture of a prepared data set: a row per split, some images with their labels laid over them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from panoda.data.prepared import PreparedSplit
from panoda.labels import IGNORE_INDEX, LabelSpace, get_label_space

COLUMNS = 5
CELL_WIDTH, CELL_HEIGHT = 320, 240
"""Largest size of one image in pixels."""
OPACITY = 0.5
GAP, LINE = 6, 22
_BACK, _INK = (255, 255, 255), (30, 30, 30)


def contact_sheet(splits: Mapping[str, PreparedSplit]) -> np.ndarray:
    """Images spread evenly over every split, labels half transparent over them, a legend below.

    Unlabelled pixels show the image alone.

    Args:
        splits: Split name -> split; all of one size and label space, as ``prepare`` writes them.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    any_split = next(iter(splits.values()))
    scale = min(CELL_WIDTH / any_split.width, CELL_HEIGHT / any_split.height)
    width, height = max(1, round(any_split.width * scale)), max(1, round(any_split.height * scale))
    space = get_label_space(any_split.label_space)
    shown = np.flatnonzero(sum(split.class_pixels for split in splits.values()))
    sheet_width = max(COLUMNS * (width + GAP) + GAP, 480)
    legend = _legend(space, shown, sheet_width)
    row_height = LINE + height + GAP
    total = len(splits) * row_height + legend.height + GAP
    sheet = Image.new("RGB", (sheet_width, total), _BACK)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (name, split) in enumerate(splits.items()):
        top = number * row_height
        what = f"{name}: {len(split)} images{'' if split.has_labels else ', no labels'}"
        draw.text((GAP, top + 3), what, fill=_INK, font=font)
        for column, index in enumerate(_spread(len(split), COLUMNS)):
            cell = Image.fromarray(_overlay(split, index, space))
            filled = cell.resize((width, height), Image.Resampling.BILINEAR)
            sheet.paste(filled, (GAP + column * (width + GAP), top + LINE))
    sheet.paste(legend, (0, len(splits) * row_height))
    return np.asarray(sheet)


def _spread(length: int, count: int) -> list[int]:
    """Up to ``count`` indices, spread evenly."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _overlay(split: PreparedSplit, index: int, space: LabelSpace) -> np.ndarray:
    """(H, W, 3) uint8 image with its label laid over it."""
    sample = split[index]
    image = sample["image"].permute(1, 2, 0).numpy()
    label = sample["label"].numpy()
    mixed = (1 - OPACITY) * image + OPACITY * space.colourise(label)
    return np.where((label != IGNORE_INDEX)[..., None], np.round(mixed), image).astype(np.uint8)


def _legend(space: LabelSpace, classes: np.ndarray, width: int) -> Image.Image:
    """Colour and name of each class, in as many lines as it takes."""
    font = ImageFont.load_default(13)
    places, x, line = [], GAP, 0
    for k in classes.tolist():
        length = 16 + 4 + int(font.getlength(space.names[k])) + 14
        if x + length > width and x > GAP:
            x, line = GAP, line + 1
        places.append((k, x, line * LINE))
        x += length
    legend = Image.new("RGB", (width, (line + 1) * LINE if places else 1), _BACK)
    draw = ImageDraw.Draw(legend)
    for k, left, top in places:
        draw.rectangle((left, top + 3, left + 15, top + 18), fill=space.palette[k], outline=_INK)
        draw.text((left + 20, top + 3), space.names[k], fill=_INK, font=font)
    return legend
