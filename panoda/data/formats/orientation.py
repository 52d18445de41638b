"""EXIF orientation: images are turned upright, as every viewer does, and labels with them.

A label is turned by its own tag. Where its tag is not that of its image, it may have been drawn on the
image's stored pixels or on the upright image: the declaration says which (``orientation``), or the sizes
tell, or the label is refused.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from panoda.data.formats.dataset import RawItem
from panoda.system.errors import DataError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class OtherSizeError(DataError):
    """A label has another size than its image."""


class DoubtfulOrientationError(DataError):
    """Nothing tells how a label lies on its image."""


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Stored pixels -> upright, as an EXIF orientation of 1..8 says."""
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def turn_back(image: Image.Image, orientation: int) -> Image.Image:
    """The inverse of ``turn``."""
    return turn(image, {6: 8, 8: 6}.get(orientation, orientation))


def upright_label(
    item: RawItem, ids: np.ndarray, own: int, image: Image.Image, orientation: int
) -> np.ndarray:
    """Lay a label over its upright image.

    Args:
        ids: (H, W) uint8 as stored.
        own: EXIF orientation of the label file.
        orientation: EXIF orientation of the image file.

    Returns:
        (H, W) uint8 of the image's size.

    Raises:
        OtherSizeError: no way of turning makes the sizes equal.
        DoubtfulOrientationError: two ways do, and the data set declares none.
    """
    # A label drawn on the stored pixels is turned with the image, whatever its own tag.
    ways = {"exif": (own,), "stored": (orientation,)}.get(item.orientation, (own, orientation))
    shape = (image.height, image.width)
    fitting = [way for way in dict.fromkeys(ways) if _turned_shape(ids, way) == shape]
    if not fitting:
        raise OtherSizeError(_other_size(item, ids, own, image, orientation))
    if len(fitting) > 1:
        raise DoubtfulOrientationError(
            f"{item.label}: {_tags(own, orientation)} ({item.image}), and the sizes do not tell whether it "
            "was drawn on the image as stored or as shown; look at one, and write orientation: stored"
            " or orientation: exif (drawn upright) into the data set's YAML file (kind: declared), or save "
            "both upright without the tag"
        )
    return ids if fitting[0] == 1 else np.array(turn(Image.fromarray(ids), fitting[0]))


def _turned_shape(ids: np.ndarray, orientation: int) -> tuple[int, ...]:
    return ids.shape[::-1] if orientation >= 5 else ids.shape


def _other_size(item: RawItem, ids: np.ndarray, own: int, image: Image.Image, orientation: int) -> str:
    tags = f" ({_tags(own, orientation)}; the image counts upright)" if (own, orientation) != (1, 1) else ""
    hint = f", under orientation: {item.orientation} of the data set" if item.orientation != "auto" else ""
    return (
        f"{item.label}: label of {ids.shape[0]} x {ids.shape[1]} pixels (height x width), but its image "
        f"{item.image} has {image.height} x {image.width}{tags}; both must have one size{hint}"
    )


def _tags(own: int, orientation: int) -> str:
    return f"its EXIF orientation is {own}, that of its image {orientation}"
