"""What an image file says about the part of the world it shows: GPano (XMP) and the lens (EXIF).

GPano is Google's Photo Sphere XMP namespace, which stitching programs and panoramic cameras write: the file
is an area of a full sphere, both given in pixels. Only the file's metadata is read, never its pixels. XMP is
parsed without a document type, so nothing in it is expanded or fetched.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path
from xml.parsers import expat

from PIL import ExifTags, Image

from panoda.data.formats.dataset import RawItem
from panoda.data.formats.pixels import UNREADABLE, open_image

NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
VIDEO_NAMESPACE = "http://ns.google.com/videos/1.0/spherical/"
"""Of the same names in videos (Spherical Video V1)."""
SAME_ASPECT = 0.01
"""Relative difference of aspects up to which a file counts as resized and not as cut."""
DEGREES_ALIKE = 2.0
"""Largest difference between declared angles and those of a file."""
NARROWEST = 0.95
"""Share of the declared width that square pixels must give: pixels may be a little wider than high."""
SHORTEST_LENS = 3.0
"""Focal length in mm below which a lens alone does not make a photograph: panoramic cameras have such."""
FULL_FRAME_DIAGONAL = math.hypot(36, 24)
_PNG_TAIL = 2**18
"""So many last bytes of a PNG are searched."""
_PNG_KEYWORD = b"iTXtXML:com.adobe.xmp\0"


class _Wrong(ValueError):
    """Metadata that is there and cannot be used; the text says why."""


@dataclass(frozen=True)
class Area:
    """The part of a full sphere that an equirectangular file shows.

    Attributes:
        fov_x_deg: Horizontal field of view in degrees, 360 for a full circle.
        lat_top_deg: Latitude of the upper edge in degrees.
        lat_bottom_deg: Latitude of the lower edge in degrees.
        centre_lon_deg: Longitude of the file's middle column in degrees; 0 is the middle of the full sphere.
    """

    fov_x_deg: float
    lat_top_deg: float
    lat_bottom_deg: float
    centre_lon_deg: float = 0.0


@dataclass(frozen=True)
class Pose:
    """How the camera was held, in degrees; None where the file does not say.

    Attributes:
        heading_deg: Compass direction of the middle of the full sphere, clockwise from north, 0..360.
        pitch_deg: Of that middle above the horizon, -90..90.
        roll_deg: The horizon turns so far counter-clockwise in the image, -180..180.
    """

    heading_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None


@dataclass(frozen=True)
class FileFacts:
    """What a file says about itself.

    Attributes:
        height: Pixels, upright.
        width: Pixels, upright.
        area: Part of the sphere, or None.
        pose: How the camera was held.
        lens: EXIF names a lens of a photograph.
        fov_x_deg: Horizontal field of view of that lens in degrees, where EXIF tells, else None.
        notes: Metadata that was not used, and why.
        source: What tells the area and the pose.
    """

    height: int
    width: int
    area: Area | None = None
    lens: bool = False
    fov_x_deg: float | None = None
    notes: tuple[str, ...] = ()
    pose: Pose = Pose()
    source: str = "GPano"


def cropped_area(xml: bytes, height: int, width: int) -> tuple[Area | None, tuple[str, ...]]:
    """The part of the sphere that a video shows by its XML, and what to say about it; None = it does not say."""
    try:
        return _area(_gpano_values(xml), height, width, turned=False)
    except _Wrong as wrong:
        return None, (f"the part of the sphere that it names is not used: {wrong}",)


def read_facts(path: Path) -> FileFacts | None:
    """What the metadata of an image file says; None when it cannot be opened as an image."""
    try:
        with open_image(path) as image:
            # Of a PNG without EXIF before its pixels, Pillow would decode the pixels to look behind them.
            behind = image.format == "PNG" and "exif" not in image.info
            exif = Image.Exif() if behind else image.getexif()
            turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            width, height = reversed(image.size) if turned else image.size
            lens, fov = _lens(exif, height, width)
            packet = _packet(image, path)
    except UNREADABLE:
        return None
    area: Area | None = None
    notes: tuple[str, ...] = ()
    pose = Pose()
    try:
        values = _gpano_values(packet) if packet else {}
        area, notes = _area(values, height, width, turned=turned) if values else (None, ())
        pose = _pose(values)
    except _Wrong as wrong:
        notes = (f"GPano is ignored: {wrong}",)
        area = None
    return FileFacts(height, width, area, lens, fov, notes, pose)


def contradiction(facts: FileFacts, item: RawItem) -> str:
    """Why a file cannot be what its data set declares of it; "" when nothing speaks against that."""
    area = facts.area
    if item.projection != "erp":
        return "" if area is None else f"GPano says {_text(area)}, declared is {item.projection}"
    declared = Area(item.fov_x_deg, item.lat_top_deg, item.lat_bottom_deg)
    if area is not None:
        # Declarations know no longitude.
        pairs = zip(astuple(area)[:3], astuple(declared)[:3], strict=True)
        same = all(abs(one - two) <= DEGREES_ALIKE for one, two in pairs)
        return "" if same else f"GPano says {_text(area)}, declared is {_text(declared)}"
    widest = 180 * facts.width / facts.height
    if widest >= NARROWEST * item.fov_x_deg:
        return ""
    return (
        f"{facts.width} x {facts.height} pixels (width x height) are at most {widest:.0f} degrees wide, "
        f"declared is {_text(declared)}"
    )


def _text(area: Area) -> str:
    return (
        f"{area.fov_x_deg:g} degrees of the circle, latitudes {area.lat_top_deg:g} to {area.lat_bottom_deg:g}"
    )


def _packet(image: Image.Image, path: Path) -> bytes:
    """The XMP packet of a JPEG, PNG, WebP or TIFF; empty without one."""
    found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if not found and image.format == "TIFF":
        found = image.tag_v2.get(700)  # type: ignore[attr-defined]
    if not found and image.format == "PNG":
        found = _late_png_packet(path)
    return found.encode() if isinstance(found, str) else bytes(found or b"")


def _late_png_packet(path: Path) -> bytes:
    """XMP behind the pixels of a PNG, where some programs write it: Pillow would have to decode them."""
    with path.open("rb") as stream:
        stream.seek(-min(path.stat().st_size, _PNG_TAIL), 2)
        content = stream.read()
    start = content.find(_PNG_KEYWORD)
    if start < 4:
        return b""
    (length,) = struct.unpack(">I", content[start - 4 : start])
    body = content[start + len(_PNG_KEYWORD) : start + 4 + length]
    compressed, rest = body[:1] == b"\1", body[2:].split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(rest, 2**20) if compressed else rest
    except zlib.error:
        return b""


def _gpano_values(packet: bytes) -> dict[str, str]:
    """GPano names and values, written as attributes or as elements.

    Raises:
        _Wrong: not XML, or with a document type.
    """
    values: dict[str, str] = {}
    open_names: list[str] = []

    def own(name: str) -> str:
        space, _, local = name.rpartition(" ")
        return local if space in (NAMESPACE, VIDEO_NAMESPACE) else ""

    def start(name: str, attributes: dict[str, str]) -> None:
        open_names.append(own(name))
        values.update({own(key): value for key, value in attributes.items() if own(key)})

    def text(data: str) -> None:
        if open_names and open_names[-1]:
            values[open_names[-1]] = values.get(open_names[-1], "") + data

    def refuse(*_: object) -> None:
        raise _Wrong("its XMP has a document type, which is not read")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: open_names.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.strip(b"\0 \t\r\n"), True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, _Wrong):
            raise
        raise _Wrong(f"its XMP is not well-formed ({error})") from error
    return {name: value.strip() for name, value in values.items()}


def _area(
    values: dict[str, str], height: int, width: int, *, turned: bool
) -> tuple[Area | None, tuple[str, ...]]:
    """The area of the sphere, and what to say about it; ``_Wrong`` where values contradict."""
    kind = values.get("ProjectionType", "equirectangular")
    if kind.lower() != "equirectangular":
        raise _Wrong(f"ProjectionType is {kind}, only equirectangular is known")
    if turned:
        raise _Wrong("EXIF turns the image by 90 degrees")
    full_w, full_h = (_number(values, f"FullPano{side}Pixels") for side in ("Width", "Height"))
    area_w, area_h = (_number(values, f"CroppedAreaImage{side}Pixels") for side in ("Width", "Height"))
    if full_w is None and full_h is None and area_w is None and area_h is None:
        return None, ()  # a heading or the like, nothing about the area
    area_w, area_h = area_w or width, area_h or height
    full_w = full_w or (2 * full_h if full_h else area_w)
    full_h = full_h or full_w / 2
    left, top = (_number(values, f"CroppedArea{side}Pixels") or 0.0 for side in ("Left", "Top"))
    whole = f"{area_w:g} x {area_h:g} pixels at {left:g}, {top:g} of {full_w:g} x {full_h:g}"
    if min(full_w, full_h, area_w, area_h) <= 0 or min(left, top) < 0:
        raise _Wrong(f"{whole} (width x height) cannot be")
    if left + area_w > full_w + 1 or top + area_h > full_h + 1:
        raise _Wrong(f"{whole} (width x height) is more than the sphere")
    notes: tuple[str, ...] = ()
    if (area_w, area_h) != (width, height):
        found = f"GPano is of {area_w:g} x {area_h:g} pixels, the file has {width} x {height}"
        rounding = 1 / min(width, height)
        if abs(width * area_h / (height * area_w) - 1) > SAME_ASPECT + rounding:
            raise _Wrong(found.replace("GPano", "it", 1) + ", another shape: it was cut since")
        notes = (f"{found}: resized",)
    top_deg = 90 - 180 * top / full_h
    fov = min(360 * area_w / full_w, 360.0)
    # A width without a place is taken as about the middle.
    placed = "CroppedAreaLeftPixels" in values
    centre = 360 * (left + area_w / 2) / full_w - 180 if placed else 0.0
    return Area(fov, top_deg, max(top_deg - 180 * area_h / full_h, -90.0), centre), notes


def _pose(values: dict[str, str]) -> Pose:
    """How the camera was held; ``_Wrong`` for angles that cannot be."""
    heading, pitch, roll = (_number(values, f"Pose{name}Degrees") for name in ("Heading", "Pitch", "Roll"))
    for name, angle, limit in (("Heading", heading, 360), ("Pitch", pitch, 90), ("Roll", roll, 180)):
        if angle is not None and abs(angle) > limit:
            raise _Wrong(f"Pose{name}Degrees is {angle:g}, more than {limit}")
    return Pose(heading, pitch, roll)


def _number(values: dict[str, str], name: str) -> float | None:
    text = values.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise _Wrong(f"{name} is {text!r}, not a number") from error
    if not math.isfinite(value):
        raise _Wrong(f"{name} is {text!r}")
    return value


def _lens(exif: Image.Exif, height: int, width: int) -> tuple[bool, float | None]:
    """Whether EXIF names a photograph's lens, and its horizontal field of view in degrees where it tells.

    The equivalent focal length is that of the same diagonal on 36 x 24 mm. Of images wider than 2:1 it tells
    nothing: several photographs may have been joined.
    """
    tags = exif.get_ifd(ExifTags.IFD.Exif)
    equivalent = _positive(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if equivalent == 0:
        return _positive(tags.get(ExifTags.Base.FocalLength)) >= SHORTEST_LENS, None
    if equivalent < 10:  # a fisheye
        return False, None
    if width > 2.05 * height:
        return True, None
    half_width = FULL_FRAME_DIAGONAL * width / math.hypot(width, height) / 2
    return True, math.degrees(2 * math.atan(half_width / equivalent))


def _positive(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
