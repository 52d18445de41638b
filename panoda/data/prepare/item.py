"""One raw image and its label -> fixed-size arrays and a row of the index."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from panoda.config.section import MAX_ENLARGEMENT, MIN_SIDE
from panoda.data.formats.dataset import Encoding, RawItem
from panoda.data.formats.decode import decode_label, ignore_black
from panoda.data.formats.images import read_upright
from panoda.data.formats.orientation import upright_label
from panoda.labels import IGNORE_INDEX
from panoda.system.errors import DataError
from panoda.system.files import sha256_file


@dataclass(frozen=True)
class ItemSpec:
    """What is the same for every item.

    Attributes:
        num_classes_from: Classes of the raw label space; 0 without labels.
        table: (256,) uint8 from raw to prepared ids; None without labels.
    """

    height: int
    width: int
    num_classes_from: int
    num_classes: int
    table: np.ndarray | None


def prepare_item(item: RawItem, spec: ItemSpec) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Decode, check, crop, resize.

    Returns:
        The arrays image (3, H, W) and, with a label, label (H, W), both uint8; and the fields of the
        index that depend on the item alone.

    Raises:
        DataError: unreadable or too small image, label of another size, in doubtful orientation or with
            ids outside its space.
    """
    image, orientation = read_upright(item.image)
    box = _crop_box(item, image.size, spec)
    size = (spec.width, spec.height)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    arrays = {"image": np.ascontiguousarray(pixels.transpose(2, 0, 1))}
    valid_rows = math.floor(spec.height * (1 - item.ignore_bottom) + 1e-9)
    class_pixels = None
    if item.label is not None:
        label = _read_label(item, image, orientation, box, spec)
        label[valid_rows:] = IGNORE_INDEX
        arrays["label"] = label
        class_pixels = np.bincount(label.ravel(), minlength=256)[: spec.num_classes].tolist()
    span = item.lat_top_deg - item.lat_bottom_deg
    row = {
        "id": item.id,
        "split": item.split,
        "group": item.group,
        "projection": item.projection,
        "fov_x_deg": item.fov_x_deg,
        "lat_top_deg": item.lat_top_deg - item.crop_top * span,
        "lat_bottom_deg": item.lat_bottom_deg + item.crop_bottom * span,
        "raw_height": image.height,
        "raw_width": image.width,
        "height": spec.height,
        "width": spec.width,
        "valid_rows": valid_rows,
        "image_sha256": sha256_file(item.image),
        "label_sha256": sha256_file(item.label) if item.label is not None else None,
        "class_pixels": class_pixels,
    }
    return arrays, row


def _crop_box(item: RawItem, size: tuple[int, int], spec: ItemSpec) -> tuple[int, int, int, int]:
    """Pillow box (left, top, right, bottom) of what remains after the vertical crop."""
    width, height = size
    top, bottom = round(height * item.crop_top), height - round(height * item.crop_bottom)
    kept = bottom - top
    least_h = max(MIN_SIDE, math.ceil(spec.height / MAX_ENLARGEMENT))
    least_w = max(MIN_SIDE, math.ceil(spec.width / MAX_ENLARGEMENT))
    if kept < least_h or width < least_w:
        raise DataError(
            f"{item.image}: too small: {max(kept, 0)} x {width} pixels (height x width) after the crop, "
            f"expected at least {least_h} x {least_w} for a prepared size of {spec.height} x {spec.width}; "
            "use a larger image, a smaller prepared size or a smaller crop"
        )
    return (0, top, width, bottom)


def _read_label(
    item: RawItem, image: Image.Image, orientation: int, box: tuple[int, int, int, int], spec: ItemSpec
) -> np.ndarray:
    assert item.label is not None and spec.table is not None
    plain = tuple((i, i) for i in (*range(spec.num_classes_from), IGNORE_INDEX))
    encoding = item.encoding or Encoding(kind="ids", table=plain)
    stored = decode_label(item.label, encoding)
    ids = upright_label(item, stored.ids, stored.orientation, image, orientation)
    if encoding.black_is_void:
        ignore_black(ids, image)
    label = Image.fromarray(spec.table[ids])
    return np.array(label.resize((spec.width, spec.height), Image.Resampling.NEAREST, box=box))
