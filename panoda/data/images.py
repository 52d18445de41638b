"""Reading raw image and label files, whatever their mode, into RGB and class ids."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from panoda.data.dataset import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""Lower-case suffixes of files that are taken for images."""

# Pillow reports broken files with all of these.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def is_image_name(path: Path) -> bool:
    """Whether a file name looks like an image; hidden files (``._x.jpg`` of some systems) do not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_rgb(path: Path) -> Image.Image:
    """Decode an image as RGB, upright.

    Grey, CMYK, palette and 16-bit files are converted, EXIF orientation is applied, and transparent
    pixels become black.

    Raises:
        DataError: missing or unreadable file, or a pixel format without a defined range.
    """
    return _to_rgb(_open(path), path)


def read_ids(path: Path) -> np.ndarray:
    """Decode a label file as class ids.

    Returns:
        (H, W) int32.

    Raises:
        DataError: missing or unreadable file, or more than one channel.
    """
    return to_ids(read_label(path), path)


def to_ids(image: Image.Image, path: Path) -> np.ndarray:
    """The class ids of a label that was read from ``path``: (H, W) int32; DataError for colours."""
    if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
        raise DataError(
            f"{path}: a label must be single-channel class ids, found mode {image.mode}; "
            "convert colour labels to ids first, or declare the data set with encoding: palette"
        )
    return np.asarray(image).astype(np.int32)


def read_label(path: Path) -> Image.Image:
    """Decode a label file as it is: neither its mode nor its orientation changes.

    Raises:
        DataError: missing or unreadable file.
    """
    return _open(path)


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; restore it or run stage download again") from error
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable image ({error}); replace or remove the file") from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
    except UNREADABLE as error:
        raise DataError(f"{path}: broken EXIF data ({error}); replace or remove the file") from error
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: grey values {values.min()}..{values.max()}, expected 8 or 16 bit")
        # 65535 / 255 = 257 maps full scale to full scale.
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have no defined range; save as 8 or 16 bit")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image if image.mode == "RGB" else image.convert("RGB")
