"""Reading raw image and label files, whatever their mode, into upright RGB and class ids."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from panoda.data.formats.orientation import turn
from panoda.data.formats.pixels import Stored, open_stored
from panoda.system.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""Lower-case suffixes of files that are taken for images."""
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"})
"""Lower-case suffixes of files that prediction takes for videos."""
UNSTITCHED = frozenset({".insv", ".insp", ".360"})
"""Lower-case suffixes of what cameras write before it is stitched."""

_IDS = ("L", "P", "1", "I")
_STRIP_PIXELS = 2**20


def is_image_name(path: Path) -> bool:
    """Whether a file name looks like an image; hidden files (``._x.jpg`` of some systems) do not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_video_name(path: Path) -> bool:
    """Whether a file name looks like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def read_rgb(path: Path) -> Image.Image:
    """Decode an image as RGB, upright.

    Grey, CMYK, palette and 16-bit files are converted, the file is turned as its EXIF orientation says, and
    transparent pixels become black.

    Raises:
        DataError: missing or unreadable file, or a pixel format without a defined range.
    """
    return read_upright(path)[0]


def read_upright(path: Path) -> tuple[Image.Image, int]:
    """The same, and the EXIF orientation of the file (1 = stored upright)."""
    stored = open_stored(path, label=False)
    return turn(_to_rgb(stored, path), stored.orientation), stored.orientation


def pixels_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an RGB image, writable: copied strip by strip, where ``np.asarray`` needs twice the memory."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    step = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def save_jpeg(image: Image.Image, path: Path, *, quality: int) -> None:
    """Write an RGB image as JPEG; a file that was cut short is an error.

    Pillow hands the bytes of a JPEG to the system itself, and does not look how many of them a nearly full disk took.

    Raises:
        OSError: disk full, or ``path`` cannot be written.
    """
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    path.write_bytes(stream.getvalue())


def to_ids(image: Image.Image, path: Path) -> np.ndarray:
    """The class ids of a label that was read from ``path``: (H, W) int32; DataError for colours."""
    if image.mode not in _IDS and not image.mode.startswith("I;16"):
        raise DataError(f"{path}: a label must be single-channel class ids, found {_found(image)}")
    return np.asarray(image).astype(np.int32)


def to_colours(image: Image.Image, path: Path) -> Image.Image:
    """The colours of a label that was read from ``path``, as RGB; DataError for ids."""
    if image.mode not in ("RGB", "RGBA", "P"):
        raise DataError(f"{path}: a label in colours must be an RGB or palette image, found {_found(image)}")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_label(path: Path) -> tuple[Image.Image, int]:
    """Decode a label file as it is stored, and its EXIF orientation; ids of few bits stay ids.

    Raises:
        DataError: missing or unreadable file, or one in lossy compression.
    """
    stored = open_stored(path, label=True)
    image, step = stored.image, {"L;2": 85, "L;4": 17}.get(stored.unpacked[:3])
    if step is not None:
        # Pillow spreads the 4 or 16 values over 0..255.
        image = Image.fromarray(np.asarray(image) // step)
    return image, stored.orientation


def _found(image: Image.Image) -> str:
    """The mode of a label that is not what was declared, and what helps."""
    mode = image.mode
    if mode in ("LA", "La", "PA"):
        return f"mode {mode}, grey or palette with transparency; save it without its alpha channel"
    if mode in ("RGB", "RGBA"):
        return (
            f"mode {mode}; convert colour labels to ids first, or declare the data set with encoding: palette"
        )
    if mode in _IDS or mode.startswith("I;16"):
        return f"mode {mode}; declare the data set with encoding: ids if these are class ids"
    what = "floating-point numbers" if mode == "F" else f"{mode} colours"
    return f"mode {mode}, {what}; save it as a single-channel PNG of 8 or 16 bits and declare encoding: ids"


def _to_rgb(stored: Stored, path: Path) -> Image.Image:
    image = stored.image
    deep = image.mode.startswith("I;16")
    if image.mode in ("I", "F"):
        what = "floating-point" if image.mode == "F" else "32-bit"
        raise DataError(f"{path}: {what} pixels have no defined range; save as 8 or 16 bit")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK") and not deep:
        raise DataError(f"{path}: {image.mode} colours are not read; save it as RGB")
    if "transparency" in image.info and (
        deep or ";16" in stored.unpacked or stored.unpacked in ("L;2", "L;4")
    ):
        raise DataError(
            f"{path}: a transparent colour (tRNS) in a PNG of 2, 4 or 16 bits; save it with an alpha channel"
        )
    if deep:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image if image.mode == "RGB" else image.convert("RGB")
