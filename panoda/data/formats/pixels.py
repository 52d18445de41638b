"""Opening an image file: how large it may be, and whether Pillow reads its pixels right.

Every pixel format is read right or refused by name. 16-bit grey and colours become 8 bits by their upper
byte, CMYK becomes RGB by Pillow's plain formula, and colour profiles (ICC) are not applied.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from panoda.data.formats.orientation import turn_back
from panoda.system.errors import DataError

MAX_PIXELS = 1 << 29
"""Pixels of the largest image that is read unless the environment says more: 32768 x 16384."""
SWITCH = "PANODA_MAX_PIXELS"
"""Environment variable with another limit."""

# Pillow reports broken files with all of these.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 258, 259, 262
_ORIENTATION, _PLANAR, _FORMAT = 274, 284, 339
_RAW, _OLD_JPEG, _JPEG = 1, 6, 7
_WHITE_IS_ZERO, _RGB, _YCBCR = 0, 2, 6


@dataclass(frozen=True)
class Stored:
    """A decoded file.

    Attributes:
        image: Its pixels as they are stored, not turned.
        unpacked: How Pillow unpacked them, such as "L;4" for four bits of grey.
        orientation: Its EXIF (in a TIFF: tag 274) orientation, 1..8; 1 = as stored.
    """

    image: Image.Image
    unpacked: str
    orientation: int


def open_stored(path: Path, *, label: bool) -> Stored:
    """Decode a file.

    Args:
        label: Its values are ids or the colours of classes, so none may be changed by compression.

    Raises:
        DataError: missing or unreadable file, one that is too large, or pixels that would be read wrong.
    """
    try:
        with open_image(path) as image:
            if image.width * image.height > max_pixels():
                raise DataError(_too_large(path, f"{image.height} x {image.width} pixels (height x width)"))
            problem = _refusal(image, label=label) or (_lossy(image, path) if label else None)
            if problem:
                raise DataError(f"{path}: {problem}")
            unpacked = _unpacked(image)
            if image.format == "TIFF":
                return _load_tiff(image, path, unpacked)
            image.load()
            return Stored(image, unpacked, _orientation(image, path))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; restore it or run stage download again") from error
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+ pixels", str(error))
        raise DataError(_too_large(path, claimed[0] if claimed else "more")) from error
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable image ({error}); replace or remove the file") from error


def open_image(path: Path) -> Image.Image:
    """Open a file without reading its pixels; Pillow's errors, also for more than twice ``max_pixels``."""
    # Pillow's own limit is lower than what stitched panoramas have, and one for the whole process.
    Image.MAX_IMAGE_PIXELS = max_pixels()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def max_pixels() -> int:
    """The limit: ``MAX_PIXELS``, or what the environment says.

    Raises:
        ValueError: the environment says no positive whole number.
    """
    text = os.environ.get(SWITCH, str(MAX_PIXELS))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"environment variable {SWITCH}: {text!r}; expected a number of pixels, or none")
    return int(text)


def _too_large(path: Path, found: str) -> str:
    return (
        f"{path}: {found}, but at most {max_pixels()} pixels are read; replace the file if it is damaged, "
        f"make it smaller, or set the environment variable {SWITCH} to as many pixels as it has (an image at "
        "work takes up to 11 bytes of memory a pixel)"
    )


def _orientation(image: Image.Image, path: Path) -> int:
    try:
        tag = image.getexif().get(_ORIENTATION, 1)
    except UNREADABLE as error:
        raise DataError(f"{path}: broken EXIF data ({error}); replace or remove the file") from error
    return tag if tag in range(1, 9) else 1


def _unpacked(image: Any) -> str:
    """Pillow's raw mode; empty where a decoder has none."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _refusal(image: Image.Image, *, label: bool) -> str | None:
    """Why the pixels of an opened file cannot be read right; None when they can."""
    pictures = _pictures(image)
    if pictures > 1:
        return (
            f"holds {pictures} pictures (pages, or frames of an animation); save the one that is meant as a "
            "file of its own"
        )
    return _tiff_refusal(image, label=label) if image.format == "TIFF" else None


def _pictures(image: Image.Image) -> int:
    """Pages or frames; smaller copies, thumbnails and masks of the same picture do not count."""
    if image.format == "MPO" or getattr(image, "n_frames", 1) == 1:
        # A camera's JPEG with more pictures inside: every viewer shows the first.
        return 1
    if image.format != "TIFF":
        return int(image.n_frames)  # type: ignore[attr-defined]
    kinds = [int(page.tag_v2.get(_SUBFILE, 0)) for page in ImageSequence.Iterator(image)]  # type: ignore[attr-defined]
    image.seek(0)
    return max(sum(not kind & 0b101 for kind in kinds), 2 if kinds[0] & 0b101 else 0)


def _tiff_refusal(image: Any, *, label: bool) -> str | None:
    tags = image.tag_v2
    bits, photometric = max(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC)
    signed, packed = 2 in tags.get(_FORMAT, (1,)), tags.get(_COMPRESSION, _RAW) != _RAW
    if photometric == _YCBCR and tags.get(_COMPRESSION) not in (_OLD_JPEG, _JPEG):
        return "a TIFF with YCbCr colours; save it as RGB"
    if photometric == _WHITE_IS_ZERO and (bits > 8 or label):
        return "a TIFF in which white is zero; save it with black as zero"
    if bits not in (1, 2, 4, 8, 16, 32):
        return f"a TIFF of {bits} bits a channel; save it with 8 or 16"
    if packed and tags.prefix == b"MM" and (bits > 16 or signed and bits > 8):
        return (
            f"a compressed big-endian TIFF of {bits} bits a channel; save it uncompressed, or little-endian"
        )
    if signed and not label:
        return "a TIFF of signed numbers, which have no defined range; save it with 8 or 16 bits, unsigned"
    return None


def _lossy(image: Image.Image, path: Path) -> str | None:
    """Why the values of a label are not those that were saved."""
    lossy = image.format in ("JPEG", "MPO", "JPEG2000", "AVIF")
    lossy |= image.format == "TIFF" and image.tag_v2.get(_COMPRESSION) in (_OLD_JPEG, _JPEG)  # type: ignore[attr-defined]
    lossy |= image.format == "WEBP" and _is_lossy_webp(path)
    if not lossy:
        return None
    return (
        f"a label in lossy {image.format} compression, which changes class ids and colours; save it as PNG, "
        "from its original and not from this file"
    )


def _is_lossy_webp(path: Path) -> bool:
    """Whether the first chunk of pixels is of the lossy kind."""
    with path.open("rb") as stream:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name in (b"VP8 ", b"VP8L"):
                return bool(name == b"VP8 ")
            stream.seek(size + size % 2, os.SEEK_CUR)
    return False


def _load_tiff(image: Any, path: Path, unpacked: str) -> Stored:
    """Pillow turns a TIFF as its tag says when it loads it: turn it back."""
    orientation = _orientation(image, path)
    tags = image.tag_v2
    if tags.get(_PLANAR) == 2 and max(tags[_BITS]) == 16 and tags.get(_COMPRESSION, _RAW) == _RAW:
        return Stored(_separate_planes(image, path), unpacked, orientation)
    # With a file name Pillow maps some files into memory, those of orientation 5 to 8 in a wrong shape.
    image.filename = ""
    image.load()
    return Stored(turn_back(image, orientation), unpacked, orientation)


def _separate_planes(image: Any, path: Path) -> Image.Image:
    """An uncompressed TIFF with a plane of 16 bits for each colour, which Pillow reads as 8 bits."""
    # Imported here: it takes a while, and few files need it.
    from tifffile import imread

    if image.tag_v2.get(_PHOTOMETRIC) != _RGB or image.mode != "RGB":
        raise DataError(f"{path}: a TIFF with separate planes of 16 bits other than RGB; save it interleaved")
    planes = imread(path)[:3]
    return Image.fromarray(np.ascontiguousarray((planes >> 8).astype(np.uint8).transpose(1, 2, 0)))
