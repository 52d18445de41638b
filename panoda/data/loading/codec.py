"""How a prepared array is stored: its bytes as they are, or a losslessly compressed image.

The compressing codec is lossless WebP at its fastest setting: beside PNG on photographs it is smaller,
several times faster to write and faster to read (docs/log.md), and works outside the interpreter lock.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image

Codec = Literal["raw", "webp"]
MAX_SIDE = 16383
"""Largest height or width in pixels that WebP can hold."""


def check_codec(codec: Codec, *, height: int, width: int) -> None:
    """Refuse what cannot be stored before any work is done.

    Raises:
        ValueError: too large for the codec.
    """
    if codec == "webp" and max(height, width) > MAX_SIDE:
        raise ValueError(
            f"codec webp: {height} x {width} pixels (height x width), it holds at most {MAX_SIDE} a side; "
            "set prepare.codec to raw or prepare a smaller size"
        )


def encode(array: np.ndarray, codec: Codec) -> np.ndarray | bytes:
    """What is stored of a (3, H, W) or (H, W) uint8 array: itself for raw, else the bytes of an image."""
    if codec == "raw":
        return array
    pixels = array.transpose(1, 2, 0) if array.ndim == 3 else array
    buffer = io.BytesIO()
    # Quality is effort here; the pixels are exact at every setting.
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def decode(data: memoryview, shape: tuple[int, ...], codec: Codec) -> np.ndarray:
    """The (3, H, W) or (H, W) uint8 array of stored bytes; for raw a view, else a new array.

    Raises:
        ValueError: the bytes are no such array.
    """
    if codec == "raw":
        return np.frombuffer(data, np.uint8, int(np.prod(shape))).reshape(shape)
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a WebP image: {error}") from error
    if image.size != (shape[-1], shape[-2]) or image.mode != "RGB":
        found = f"{image.mode} {image.height} x {image.width}"
        raise ValueError(f"an image of {found}, expected RGB {shape[-2]} x {shape[-1]}")
    if len(shape) == 2:
        # A grey image comes back with three equal channels.
        return np.array(image.getchannel(0))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
