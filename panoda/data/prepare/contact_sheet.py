"""A picture of a prepared data set: a row per split, some images with their labels laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from panoda.data.loading.prepared import PreparedSplit, Sample
from panoda.labels import IGNORE_INDEX, LabelSpace

COLUMNS = 5
CELL_WIDTH, CELL_HEIGHT = 320, 240
"""Largest size of one image in pixels."""
OPACITY = 0.5
GAP, LINE = 6, 22
_BACK, _INK = (255, 255, 255), (30, 30, 30)


def contact_sheet(folders: Sequence[Path], space: LabelSpace) -> np.ndarray:
    """Images spread evenly over every split, labels half transparent over them, a legend below.

    Unlabelled pixels show the image alone. The splits are of one size, as ``prepare`` writes them.

    Args:
        folders: Of the splits.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    splits = [PreparedSplit(folder) for folder in folders]
    scale = min(CELL_WIDTH / splits[0].width, CELL_HEIGHT / splits[0].height)
    width, height = (max(1, round(side * scale)) for side in (splits[0].width, splits[0].height))
    shown = np.flatnonzero(sum(split.class_pixels for split in splits))
    drawn = []
    for split in splits:
        what = f"{split.folder.name}: {len(split)} images{'' if split.has_labels else ', no labels'}"
        samples = (split[index] for index in _spread(len(split), COLUMNS))
        drawn.append(([what], [Image.fromarray(_overlay(sample, space)) for sample in samples]))
    return np.asarray(draw_sheet(drawn, (width, height), space, shown.tolist()))


def draw_sheet(
    rows: Sequence[tuple[Sequence[str], Sequence[Image.Image]]],
    size: tuple[int, int],
    space: LabelSpace,
    classes: Sequence[int],
) -> Image.Image:
    """Rows of images with captions above them, and a legend below.

    Args:
        rows: Captions and images of each row, at most ``COLUMNS``.
        size: Width and height of every image in the sheet, in pixels.
        space: Names and colours of the legend.
        classes: Ids in the legend.
    """
    width, height = size
    sheet_width = max(COLUMNS * (width + GAP) + GAP, 480)
    legend = _legend(space, classes, sheet_width)
    row_height = LINE + height + GAP
    total = len(rows) * row_height + legend.height + GAP
    sheet = Image.new("RGB", (sheet_width, total), _BACK)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (captions, images) in enumerate(rows):
        top = number * row_height
        for column, caption in enumerate(captions):
            draw.text((GAP + column * (width + GAP), top + 3), caption, fill=_INK, font=font)
        for column, image in enumerate(images):
            filled = image.resize(size, Image.Resampling.BILINEAR)
            sheet.paste(filled, (GAP + column * (width + GAP), top + LINE))
    sheet.paste(legend, (0, len(rows) * row_height))
    return sheet


def _spread(length: int, count: int) -> list[int]:
    """Up to ``count`` indices, spread evenly."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _overlay(sample: Sample, space: LabelSpace) -> np.ndarray:
    """(H, W, 3) uint8 image with its label laid over it."""
    image = sample["image"].permute(1, 2, 0).numpy()
    label = sample["label"].numpy()
    mixed = (1 - OPACITY) * image + OPACITY * space.colourise(label)
    return np.where((label != IGNORE_INDEX)[..., None], np.round(mixed), image).astype(np.uint8)


def _legend(space: LabelSpace, classes: Sequence[int], width: int) -> Image.Image:
    """Colour and name of each class, in as many lines as it takes."""
    font = ImageFont.load_default(13)
    places, x, line = [], GAP, 0
    for k in classes:
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
