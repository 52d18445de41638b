"""Label videos: the classes of every frame without loss, an overlay to watch, a table of shares.

Labels are a Matroska file of FFV1 in grey: a pixel's value is its id, bit by bit. The overlay is H.264 in an MP4,
without sound, and keeps the spherical metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from panoda.data.formats.images import pixels_of
from panoda.data.formats.spherical import Sphere, add_sphere
from panoda.data.formats.videos import ALL, Frame, Frames, Video, open_video
from panoda.deployment.model import Model, Picture, Prediction
from panoda.deployment.records import describe, measure, write_table
from panoda.deployment.view import Geometry, View
from panoda.inference.whole import Smoothing
from panoda.system.background import BackgroundWriter, read_ahead
from panoda.system.errors import DataError
from panoda.system.files import staged_file

COLUMNS = ("frame", "seconds", "mean_confidence", "sky_view_factor", "green_view_factor")
"""Columns of a video's table before the classes; ``frame`` counts from 0 in the file."""
EXACT = {"level": "3", "slices": "4"}
"""Options of FFV1."""
SHOWN = {"preset": "veryfast", "crf": "20", "rc-lookahead": "0", "bf": "0"}
"""Options of H.264: without looking ahead, so that it holds no more than a few frames."""
BT709, LIMITED, FULL = 1, 1, 2
"""FFmpeg's numbers of colours and of ranges; BT.709 is what players assume of large videos."""


def predict_video(
    model: Model,
    path: Path,
    name: str,
    out: Path,
    geometry: Geometry,
    settings: Mapping[str, Any],
    *,
    frames: Frames = ALL,
    smooth: float = 0.0,
    ids: np.ndarray | None = None,
    bar: Progress,
    tell: Callable[[Path, View], None],
) -> dict[str, Any] | str:
    """Write ``labels/NAME.mkv``, ``overlays/NAME.mp4`` and ``frames/NAME.csv`` and ``.parquet`` of a video.

    What the first frame is taken for holds for all.

    Args:
        settings: Arguments of ``Model.label``.
        smooth: Weight of ``Smoothing`` over these frames; 0 = none.
        ids: (256,) table from train ids to those that are written; None = train ids.
        bar: Gets a task of its own.
        tell: Told what the video is taken for, before it is labelled.

    Returns:
        Its record (shares, factors and confidence are means over the frames), or why it cannot be predicted.

    Raises:
        OSError: disk full, or ``out`` cannot be written.
    """
    files = {"label": f"labels/{name}.mkv", "overlay": f"overlays/{name}.mp4"}
    files |= {"shares": f"frames/{name}.csv", "shares_parquet": f"frames/{name}.parquet"}
    rows: list[dict[str, Any]] = []
    mean = Smoothing(smooth)
    try:
        with open_video(path) as video, closing(video.frames(frames)) as decoded, ExitStack() as stack:
            first = next(decoded)
            view = model.take(first.pixels, geometry, path=path, facts=video.facts).view
            tell(path, view)
            task = bar.add_task(path.name, total=video.count(frames))
            stack.callback(bar.remove_task, task)
            with (
                _writing(out / files["label"], out / files["overlay"], video, frames, ids) as write,
                closing(read_ahead(chain([first], decoded), depth=1)) as ahead,
                BackgroundWriter(depth=0) as background,
            ):

                def finish(frame: Frame, found: Prediction) -> None:
                    write(found)
                    rows.append({"frame": frame.number, "seconds": frame.seconds, **measure(found)})

                for frame in ahead:
                    found = model.label(Picture(frame.pixels, view, path), smooth=mean, **settings)
                    background.submit(finish, frame, found)
                    bar.advance(task)
    except DataError as error:
        return str(error)
    except ValueError as error:  # such as an exported model that takes another size
        return f"{path}: {error}"
    write_table(rows, COLUMNS, model.space, out / files["shares"])
    about = {"asked": asked(frames, smooth), "count": len(rows), "rate": float(_rate(video, frames))}
    about |= {"first": rows[0]["frame"], "last": rows[-1]["frame"]}
    return {**describe(found, path, name, files), **_means(rows), "frames": about}


def asked(frames: Frames, smooth: float) -> dict[str, Any]:
    """What a record keeps of the options that concern videos alone."""
    return {**asdict(frames), "smooth": smooth}


@contextmanager
def _writing(
    label: Path, overlay: Path, video: Video, frames: Frames, ids: np.ndarray | None
) -> Iterator[Callable[[Prediction], None]]:
    """Yield what writes one prediction after the other; both files appear when all are written."""
    import av

    rate = _rate(video, frames)
    height, width = video.facts.height, video.facts.width
    # 4:2:0 has no odd sizes: the last row or column is left out.
    even = (height // 2 * 2, width // 2 * 2)
    grey = "gray" if ids is None or ids.dtype == np.uint8 else "gray16le"
    with staged_file(label) as label_aside, staged_file(overlay) as overlay_aside:
        try:
            with (
                av.open(str(label_aside), "w", format="matroska") as labels,
                av.open(str(overlay_aside), "w", format="mp4") as overlays,
            ):
                exact = labels.add_stream("ffv1", rate=rate, options=EXACT)
                exact.width, exact.height, exact.pix_fmt = width, height, grey
                exact.color_range = FULL  # whoever reads it has nothing to stretch
                shown = overlays.add_stream("libx264", rate=rate, options=SHOWN)
                shown.height, shown.width, shown.pix_fmt = *even, "yuv420p"
                shown.colorspace = shown.color_primaries = shown.color_trc = BT709
                shown.color_range = LIMITED

                def write(found: Prediction) -> None:
                    pixels = found.label if ids is None else ids[found.label]
                    labels.mux(exact.encode(av.VideoFrame.from_ndarray(pixels, format=grey)))
                    pixels = pixels_of(found.overlay().crop((0, 0, even[1], even[0])))
                    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    colours = {"dst_colorspace": BT709, "dst_color_range": LIMITED}
                    overlays.mux(shown.encode(picture.reformat(format="yuv420p", **colours)))

                yield write
                labels.mux(exact.encode())
                overlays.mux(shown.encode())
        except av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(overlay)) from error
        if video.sphere != Sphere():
            add_sphere(overlay_aside, video.sphere)


def _rate(video: Video, frames: Frames) -> Fraction:
    """Frames per second of what is written."""
    if frames.fps is None:
        return video.rate
    return min(video.rate, Fraction(frames.fps).limit_denominator(10**5))


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of what ``measure`` says of every frame; None where it is not known."""
    found: dict[str, Any] = {}
    for key, value in rows[0].items():
        if isinstance(value, dict):
            found[key] = {name: float(np.mean([row[key][name] for row in rows])) for name in value}
        elif key not in ("frame", "seconds"):
            found[key] = None if value is None else float(np.mean([row[key] for row in rows]))
    return found
