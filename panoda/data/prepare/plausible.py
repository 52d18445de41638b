"""What is suspicious about labels that decode without an error.

One class alone, classes that never occur, a large share of ignored pixels.

Classes that the data set cannot have (its encoding, or the remap to another label space, knows none) are not
missing. In a few images rare classes are absent by chance, so a class counts as missing in many images, or
where a good part of all classes is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from panoda.data.formats.dataset import Encoding
from panoda.labels import IGNORE_INDEX

IGNORED_SHARE, IGNORED_SHARE_OF_PART = 1 / 3, 2 / 3
"""More ignored pixels than this are suspicious: of labels that are used as a whole, or in part. Cityscapes
ignores about a tenth, panoramas with black poles up to a quarter."""
MANY_IMAGES = 50
MISSING_SHARE = 1 / 3
"""Of fewer images, this share of the classes has to be missing."""


def known_ids(encoding: Encoding | None, num_classes: int) -> set[int]:
    """Classes of the raw label space that labels can have."""
    if encoding is None:
        return set(range(num_classes))
    return {new for _, new in encoding.table if new != IGNORE_INDEX}


def one_class(pixels: np.ndarray, possible: Collection[int]) -> bool:
    """Whether one class alone occurs where there could be several; ``pixels`` (K,) counts each."""
    return len(possible) > 1 and np.count_nonzero(pixels) == 1


def doubts(
    pixels: np.ndarray,
    ignored: int,
    images: int,
    *,
    names: Sequence[str],
    possible: Collection[int],
    in_part: bool,
    missing: bool = True,
) -> list[str]:
    """What is suspicious, a sentence each; nothing for labels as they usually are.

    Args:
        pixels: (K,) labelled pixels of each class.
        ignored: Pixels that count as unlabelled.
        possible: Classes that the labels can have.
        in_part: Classes of the files are left out on purpose.
    """
    found = []
    if one_class(pixels, possible):
        found.append(
            f"every labelled pixel is {names[int(pixels.argmax())]!r}, no other class occurs: nothing can be "
            "learned from that; masks of 0 and 255 need labels.ids, such as ids: {0: 0, 255: 1}, because 255 "
            "otherwise means unlabelled"
        )
    else:
        absent = sorted(k for k in possible if not pixels[k])
        many = images >= MANY_IMAGES or len(absent) >= MISSING_SHARE * len(possible)
        if missing and absent and many and pixels.any():
            listed = ", ".join(names[k] for k in absent)
            found.append(f"never occur in the labels of {images} images: {listed}; check the ids or colours")
    total = int(pixels.sum()) + ignored
    if ignored > (IGNORED_SHARE_OF_PART if in_part else IGNORED_SHARE) * total:
        found.append(
            f"{100 * ignored / total:.0f} % of the pixels are ignored; check which values mean unlabelled "
            "(255 does, unless the encoding lists it)"
        )
    return found
