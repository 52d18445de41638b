"""Videos: what a file says of itself, and its frames as upright RGB.

PyAV (extra ``video``) is imported where a video is opened.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from panoda.data.formats.gpano import Area, FileFacts, Pose, cropped_area
from panoda.data.formats.spherical import Sphere, read_sphere, sphere_xml
from panoda.system.errors import DataError
from panoda.system.files import explained_error

USUAL_RATE = Fraction(25)
"""Frames per second of a file that does not say."""
SLOWEST = 0.001
"""Frames per second that may be asked for."""
MISSING = 0.02
"""Share of the frames that a file promises which may be missing without its being cut off."""
THREADS = 4
"""Each decodes a frame of its own, which takes memory."""
_EQUIRECTANGULAR, _TILE, _HALF = 0, 2, 3
_PROJECTIONS = {1: "a cubemap", 4: "rectilinear", 5: "fisheye", 6: "immersive"}
_STEREO = (1, 2)


@dataclass(frozen=True)
class Frames:
    """Which frames of videos are taken.

    Attributes:
        fps: So many a second, evenly; None = all.
        first: From this one on, counted from 0.
        stop: Up to this one, which is left out; None = to the end.

    Raises:
        ValueError: a rate that is not positive, or a range without frames.
    """

    fps: float | None = None
    first: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.fps is not None and not (self.fps >= SLOWEST and math.isfinite(self.fps)):
            raise ValueError(
                f"a rate of {self.fps:g} frames a second: expected {SLOWEST:g} or more, or none for every frame"
            )
        if self.first < 0 or (self.stop is not None and self.stop <= self.first):
            raise ValueError(f"frames {self}: expected FIRST:STOP with 0 <= FIRST < STOP, such as 100:200")

    def __str__(self) -> str:
        """The range."""
        return f"{self.first}:{'' if self.stop is None else self.stop}"


ALL = Frames()
"""Every frame."""


@dataclass(frozen=True)
class Frame:
    """A decoded frame: its number in the file, its time in seconds, (H, W, 3) uint8 RGB, upright."""

    number: int
    seconds: float
    pixels: np.ndarray


class Video:
    """An opened video.

    Attributes:
        path: Its file.
        rate: Frames per second.
        length: Frames that it should have, by what the file says; None = it does not.
        facts: What its metadata say; known after the first frame.
        sphere: Its spherical metadata, for a file that shows the same.
    """

    def __init__(self, path: Path, container: Any) -> None:
        """Use a container of PyAV's."""
        if not container.streams.video:
            raise DataError(f"{path}: no pictures in it, sound alone; leave it out")
        self.path, self._container, self._stream = path, container, container.streams.video[0]
        if self._stream.codec_context is None:
            raise DataError(f"{path}: its codec is not known; convert it, to H.264 for example")
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = THREADS
        rate = self._stream.average_rate or self._stream.guessed_rate or USUAL_RATE
        self.rate = Fraction(rate.numerator, rate.denominator)
        self.length, self._present = self._lengths()
        self.facts = FileFacts(0, 0)
        self.sphere = Sphere()

    def _lengths(self) -> tuple[int | None, int | None]:
        """Frames that should be there, and that are there as far as an index tells; None = not known."""
        if "mov" in self._container.format.name:
            # As the edit list plays it.
            entries = [entry for entry in self._stream.index_entries if not entry.is_discard]
            here = sum(entry.pos + entry.size <= self._container.size for entry in entries)
            return (len(entries), here) if entries else (None, None)
        if self._stream.frames:
            return int(self._stream.frames), None
        # Sound included, which may go on a little longer.
        seconds = (self._container.duration or 0) / 1e6 - 1
        return (int(seconds * self.rate), None) if seconds > 0 else (None, None)

    def count(self, asked: Frames) -> int | None:
        """So many frames will be taken, about; None = not known."""
        stop = min(filter(None, (self.length, asked.stop)), default=None)
        if stop is None:
            return None
        share = 1.0 if asked.fps is None else min(1.0, float(asked.fps / self.rate))
        return max(1, math.ceil((stop - asked.first) * share))

    def frames(self, asked: Frames) -> Generator[Frame]:
        """The frames that are asked for, in order.

        Raises:
            DataError: the file is broken or cut off, frames change their size, or none is in the range.
        """
        import av

        if self._present is not None and (asked.stop is None or asked.stop > self._present):
            self._check_end(self._present)  # before hours of work
        number, taken, start, size = 0, 0, 0.0, None
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                if asked.stop is not None and number >= asked.stop:
                    break
                if size is None:
                    size = (frame.height, frame.width)
                    self._look(frame)
                if (frame.height, frame.width) != size:
                    raise DataError(
                        f"{self.path}: frame {number} is {frame.height} x {frame.width} pixels (height x width), "
                        f"those before are {size[0]} x {size[1]}; split the video there, or convert it to one size"
                    )
                seconds = float(number / self.rate) if frame.time is None else frame.time
                if number < asked.first:
                    continue
                start = seconds if taken == 0 else start
                # A little early rather than a frame late: times are rounded.
                if asked.fps is None or (seconds - start) * asked.fps >= taken - asked.fps / self.rate / 4:
                    taken += 1
                    yield Frame(number, seconds, _upright(self.path, frame))
            else:
                seen = 0 if size is None else number + 1
                if asked.stop is None or seen < asked.stop:
                    self._check_end(seen)
        except av.FFmpegError as error:
            before = f", or take the frames before with --frames :{number}" if number else ""
            raise DataError(
                f"{self.path}: broken or cut off after about {number} frames ({error.strerror}); copy it again{before}"
            ) from error
        if taken == 0:
            raise DataError(f"{self.path}: no frame in {asked}, it has {number + 1}; choose another range")

    def _check_end(self, seen: int) -> None:
        if seen == 0:
            raise DataError(f"{self.path}: no frames in it; replace or remove the file")
        if self.length is not None and self.length - seen > max(1, MISSING * self.length):
            raise DataError(
                f"{self.path}: cut off: {seen} of {self.length} frames are there; copy it again, or take these with "
                f"--frames :{seen}"
            )

    def _look(self, frame: Any) -> None:
        """Read the metadata, which PyAV shows with a frame."""
        stereo, sphere = (frame.side_data.get(name) for name in ("STEREO3D", "SPHERICAL"))
        if stereo is not None and struct.unpack_from("<i", bytes(stereo))[0] in _STEREO:
            raise DataError(f"{self.path}: two pictures in a frame (stereo); cut one of them out first")
        turned = frame.rotation % 180 != 0
        height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
        self.facts = FileFacts(height, width)
        # V1 in Matroska is a tag, which FFmpeg does not read.
        tags = {name.lower(): text for name, text in self._stream.metadata.items()}
        xml = tags.get("spherical-video", "").encode()
        if sphere is None and not xml:
            return
        if turned:
            why = "spherical metadata are not used: the frames are turned by 90 degrees"
            self.facts = replace(self.facts, notes=(why,))
            return
        area, pose = self._mapping(bytes(36) if sphere is None else bytes(sphere))
        self.sphere, notes = read_sphere(self.path), tuple[str, ...]()
        if xml:
            self.sphere = Sphere(xml)
        if self.sphere.xml and not self.sphere.sv3d:
            cropped, notes = cropped_area(self.sphere.xml, height, width)
            area = cropped or area
        if "mov" not in self._container.format.name and pose != Pose():
            pose, notes = Pose(), (*notes, "its pose is not used: give --upright with --pitch and --roll")
        if not self.sphere.xml:
            self.sphere = replace(self.sphere, xml=sphere_xml(area, height, width))
        self.facts = FileFacts(height, width, area, notes=notes, pose=pose, source="spherical metadata")

    def _mapping(self, data: bytes) -> tuple[Area, Pose]:
        """What FFmpeg's AVSphericalMapping says: angles in 16.16, edges in 0.32 fixed point."""
        kind, _, pitch, roll, *edges, _ = struct.unpack_from("<4i5I", data)
        if kind not in (_EQUIRECTANGULAR, _TILE, _HALF):
            raise DataError(
                f"{self.path}: its projection is {_PROJECTIONS.get(kind, f'of kind {kind}')}; convert it to "
                "equirectangular first (FFmpeg: -vf v360)"
            )
        left, top, right, bottom = (edge / 2**32 for edge in edges)
        if kind == _HALF and left + right == 0:
            left = right = 0.25
        area = Area(360 * (1 - left - right), 90 - 180 * top, 180 * bottom - 90, 180 * (left - right))
        return area, Pose(None, pitch / 2**16, roll / 2**16) if pitch or roll else Pose()


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video.

    Raises:
        DataError: no video, or PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise DataError(
            f"{path}: videos need PyAV ({error}): run `pip install 'panoda[video]'` or `make setup`"
        ) from error
    try:
        container = av.open(str(path))
    except OSError as error:
        raise DataError(explained_error(error)) from error
    except av.FFmpegError as error:
        raise DataError(
            f"{path}: no video, or one that is cut off ({error.strerror}); copy it again, or leave it out"
        ) from error
    with container:
        yield Video(path, container)


def _upright(path: Path, frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a frame, turned as the file says."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise DataError(f"{path}: its frames are to be turned by {frame.rotation} degrees; convert it first")
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
