"""The page to look around in, as one text: pannellum (2.5.7, MIT, its licence beside it) and what steers it.

The page keeps its data as JSON: ``classes`` ({name, colour}) and ``images``, each with a name, the part of the sphere
that it shows in degrees (fov, latTop, latBottom, centreLon), a photograph, and one or more maps of labels ({title,
label, confidence}). Pictures are data URIs; the page reads the bytes of label and confidence PNGs themselves.
"""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FILES = ("viewer.html", "viewer.css", "viewer.js", "pannellum.css", "pannellum.js", "pannellum.LICENSE")
DATA = "@@data@@"
"""Stands in ``viewer_text`` where the data go, written by ``json_in_page``."""


def viewer_text() -> str:
    """The page without its data."""
    parts = {name: Path(__file__).with_name(name).read_text(encoding="utf-8") for name in FILES}
    return re.sub(r"@@([\w.]+)@@", lambda found: parts.get(found[1], found[0]), parts["viewer.html"])


def json_in_page(value: Any) -> str:
    """JSON that may stand in a script of a page: a tag in a file name would end it."""
    return json.dumps(value).replace("<", "\\u003c")


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """A photograph as a data URI."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def indexed_uri(values: np.ndarray, palette: np.ndarray | None = None) -> str:
    """(H, W) uint8 values as the data URI of a PNG of one byte a pixel.

    Args:
        values: Class ids, or 255ths of a confidence.
        palette: (256, 3) uint8 colours; None = greys.
    """
    image = Image.fromarray(values)
    # With a palette PNG rows are stored as they are, which is how the page reads them.
    image.putpalette((np.arange(256, dtype=np.uint8).repeat(3) if palette is None else palette).tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
