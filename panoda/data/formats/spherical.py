"""Spherical metadata of MP4 and MOV files: Google's Spherical Video V1 (XML in a ``uuid`` box) and V2 (``sv3d``).

A file is a list of boxes: four bytes of size, four of kind, then content, which of some kinds are boxes again
(ISO/IEC 14496-12). V1 lies at the end of a video's ``trak``, V2 in the entry of its codec. FFmpeg reads both but
writes neither for a stream that it encodes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from panoda.data.formats.gpano import Area

V1 = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")
"""The UUID of V1."""
LARGEST_MOOV = 2**28
"""Bytes of the largest index of a file that is searched: hours of video."""
_ENTRY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"")
"""Where the entry of a codec lies; its own kind is the codec's."""
_FIELDS = {b"stsd": 8, b"": 78}
"""Bytes of other content before the boxes inside."""
_XML = """<?xml version="1.0"?><rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" \
xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/">{}</rdf:SphericalVideo>"""

Span = tuple[bytes, int, int, int]
"""Kind of a box, where it and its content begin, and where it ends."""


@dataclass(frozen=True)
class Sphere:
    """The spherical metadata of a video.

    Attributes:
        xml: Content of V1; empty without one.
        sv3d: The whole box of V2; empty without one.
    """

    xml: bytes = b""
    sv3d: bytes = b""


def read_sphere(path: Path) -> Sphere:
    """The spherical metadata of an MP4 or MOV; empty of other files and without any.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        moov = _moov(stream)
    if moov is None:
        return Sphere()
    xml = sv3d = b""
    for trak in _inside(moov[1], _ENTRY[:2]):
        for kind, _, content, end in _boxes(moov[1], trak[2], trak[3]):
            if kind == b"uuid" and moov[1][content : content + 16] == V1:
                xml = xml or moov[1][content + 16 : end]
    for entry in _inside(moov[1], _ENTRY):
        for kind, start, _, end in _boxes(moov[1], entry[2], entry[3]):
            if kind == b"sv3d":
                sv3d = sv3d or moov[1][start:end]
    return Sphere(xml, sv3d)


def add_sphere(path: Path, sphere: Sphere) -> None:
    """Put spherical metadata into the first track of an MP4 whose ``moov`` is its last box, so that nothing moves.

    Raises:
        ValueError: another file.
        OSError: it cannot be written.
    """
    with path.open("r+b") as stream:
        found = _moov(stream)
        if found is None or found[0] + len(found[1]) != path.stat().st_size:
            raise ValueError(f"{path}: not an MP4 that ends with its index")
        start, moov = found
        if sphere.sv3d:
            moov = _with(moov, _ENTRY, sphere.sv3d)
        if sphere.xml:
            box = struct.pack(">I4s", 24 + len(sphere.xml), b"uuid") + V1 + sphere.xml
            moov = _with(moov, _ENTRY[:2], box)
        stream.seek(start)
        stream.write(moov)


def sphere_xml(area: Area, height: int, width: int) -> bytes:
    """V1's XML of an equirectangular video of ``height`` x ``width`` pixels that shows ``area``."""
    full_w, full_h = width * 360 / area.fov_x_deg, height * 180 / (area.lat_top_deg - area.lat_bottom_deg)
    values: dict[str, object] = {"Spherical": "true", "Stitched": "true", "StitchingSoftware": "unknown"}
    values["ProjectionType"] = "equirectangular"
    if (round(full_w), round(full_h)) != (width, height):
        left = (area.centre_lon_deg + 180) / 360 * full_w - width / 2
        top = (90 - area.lat_top_deg) / 180 * full_h
        values |= {"CroppedAreaImageWidthPixels": width, "CroppedAreaImageHeightPixels": height}
        values |= {"FullPanoWidthPixels": round(full_w), "FullPanoHeightPixels": round(full_h)}
        values |= {"CroppedAreaLeftPixels": round(left), "CroppedAreaTopPixels": round(top)}
    tags = (f"<GSpherical:{name}>{value}</GSpherical:{name}>" for name, value in values.items())
    return _XML.format("".join(tags)).encode()


def _moov(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Where the index of a file begins, and its bytes; the rest of the file is not read."""
    size = stream.seek(0, 2)
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(16)
        span = next(_boxes(head, 0, size - at), None)
        if span is None:
            return None
        kind, _, _, end = span
        if kind == b"moov":
            if end > LARGEST_MOOV:
                return None
            stream.seek(at)
            return at, stream.read(end)
        at += end
    return None


def _boxes(data: bytes, start: int, stop: int) -> Iterator[Span]:
    """The boxes between two places, as far as their sizes make sense."""
    while start + 8 <= stop and start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and start + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        end = stop if size == 0 else start + size
        if not content <= end <= stop:
            return
        yield kind, start, content, end
        start = end


def _inside(data: bytes, path: Sequence[bytes], start: int = 0, stop: int | None = None) -> Iterator[Span]:
    """The boxes at the end of a path of kinds (b"" = any), each with where the boxes inside it begin."""
    for kind, begin, content, end in _boxes(data, start, len(data) if stop is None else stop):
        if path[0] not in (b"", kind):
            continue
        content += _FIELDS.get(path[0], 0)
        if len(path) == 1:
            yield kind, begin, content, end
        else:
            yield from _inside(data, path[1:], content, end)


def _with(data: bytes, path: Sequence[bytes], box: bytes) -> bytes:
    """``data`` with a box at the end of the first one of the path; every box around it grows."""
    place = next(_inside(data, path))[3]
    grown = bytearray(data)
    for depth in range(1, len(path) + 1):
        begin = next(span[1] for span in _inside(data, path[:depth]) if span[1] < place <= span[3])
        (size,) = struct.unpack_from(">I", data, begin)
        struct.pack_into(">I", grown, begin, size + len(box))
    grown[place:place] = box
    return bytes(grown)
