"""Label Studio's masks: run-length encoded RGBA bytes, packed bit by bit (the format of @thi.ng/rle-pack).

A stream of bits, highest first: the number of values (32 bits), bits of a value less 1 (5), and four lengths less 1 in
bits (4 each). Then runs: one bit (1 = one value repeated, 0 = values one by one), two bits that choose a length,
the number of values less 1 in so many bits, and the value or values. A mask of H x W pixels has 4 H W values, R, G, B
and alpha of each; alpha says what belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from panoda.system.errors import DataError

LENGTHS = (3, 4, 8, 16)
"""Bits of the four lengths that ``encode`` writes, as Label Studio does."""
INSIDE = 128
"""Alpha from which on a pixel belongs to the mask; the edges of a brush are half transparent."""
_LONGEST = 1 << LENGTHS[-1]


def encode(mask: np.ndarray) -> list[int]:
    """Bytes of a mask (H, W) bool, 255 in all channels where it is true.

    Example:
        >>> encode(np.array([[False]]))
        [0, 0, 0, 4, 57, 27, 252, 96, 0]
    """
    flat = np.asarray(mask, dtype=bool).ravel()
    bits = [f"{4 * flat.size:032b}", f"{7:05b}", *(f"{length - 1:04b}" for length in LENGTHS)]
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    for start, count in zip(starts, np.diff(starts, append=flat.size), strict=True):
        value, left = "11111111" if flat[start] else "00000000", 4 * int(count)
        while left:
            run = min(left, _LONGEST)
            kind = next(k for k, length in enumerate(LENGTHS) if run <= 1 << length)
            bits.append(f"1{kind:02b}{run - 1:0{LENGTHS[kind]}b}{value}")
            left -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode(data: Sequence[int], height: int, width: int) -> np.ndarray:
    """The mask (H, W) bool of bytes, by its alpha.

    Raises:
        DataError: bytes of a mask of another size, cut off, or no such bytes at all.
    """
    try:
        text = "".join(f"{byte:08b}" for byte in bytes(data))
    except (TypeError, ValueError) as error:
        raise DataError("no bytes of a mask: expected numbers from 0 to 255") from error
    place = 0

    def read(bits: int) -> int:
        nonlocal place
        place += bits
        if place > len(text):
            raise DataError("the bytes of a mask are cut off")
        return int(text[place - bits : place], 2)

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
        raise DataError(f"a mask of {total // 4} pixels, expected {height} x {width} (height x width)")
    if word != 8:
        raise DataError(f"a mask with values of {word} bits, expected 8")
    values = np.zeros(total, dtype=np.uint8)
    filled = 0
    while filled < total:
        repeated = read(1)
        end = filled + read(lengths[read(2)]) + 1
        if end > total:
            raise DataError("the bytes of a mask hold more than its pixels")
        if repeated:
            values[filled:end] = read(word)
        else:
            values[filled:end] = [read(word) for _ in range(end - filled)]
        filled = end
    return (values[3::4] >= INSIDE).reshape(height, width)
