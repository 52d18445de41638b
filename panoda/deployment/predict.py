"""Label panoramas and videos from files: palette PNGs at the original size, confidence, overlays, a manifest, tables.

A file that cannot be read is skipped and named in the result; everything else is still predicted. While the model
looks at one image, the next ones are decoded and the last ones measured and written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from panoda.data.formats.browse import PREDICTED_FOLDERS
from panoda.data.formats.declaration import read_declaration
from panoda.data.formats.encoding import encoding_of, space_of
from panoda.data.formats.images import (
    IMAGE_SUFFIXES,
    UNSTITCHED,
    VIDEO_SUFFIXES,
    is_image_name,
    is_video_name,
    save_jpeg,
)
from panoda.data.formats.videos import ALL, Frames
from panoda.deployment.model import Model, Picture, Prediction, label_png, load
from panoda.deployment.records import Records, describe, describe_model
from panoda.deployment.video import asked, predict_video
from panoda.deployment.view import AUTO, Geometry, View
from panoda.inference.prediction import MIN_SIDE
from panoda.inference.whole import Smoothing
from panoda.labels import IGNORE_INDEX, LabelSpace, get_label_space
from panoda.system.errors import DataError
from panoda.system.files import explain_disk_full, explained_error, one_name, staged_file
from panoda.system.progress import progress_bar

T = TypeVar("T")
JOBS = 2
"""Threads that decode, measure and write beside the model."""
AHEAD = 2
"""So many images wait decoded, and so many predicted, for each thread; large ones fewer."""
PIXELS_WAITING = 2**25
"""Pixels of the images that wait on either side, where one is not more."""
MANIFEST_SECONDS = 5.0
"""What a killed process has predicted since the manifest was last written is predicted again."""


@dataclass(frozen=True)
class PredictResult:
    """What ``predict_files`` did.

    Attributes:
        labels: Label files, in the order of the images and videos that could be read.
        summary: Table over all images of the folder, one row each; a Parquet file lies beside it.
        failures: (image, reason) of every image that was skipped; empty when all went well.
        kept: So many images were predicted already by an earlier call.
        manifest: What manifest.json says.
    """

    labels: list[Path]
    summary: Path
    failures: list[tuple[Path, str]]
    kept: int
    manifest: dict[str, Any]


def predict_files(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    geometry: Geometry = AUTO,
    ids_of: str | None = None,
    frames: Frames = ALL,
    smooth: float = 0.0,
    jobs: int = JOBS,
    device: str | torch.device = "cpu",
    progress: bool = False,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> PredictResult:
    """Write ``labels/*.png``, ``confidence/*.png``, ``overlays/*.jpg``, the manifest and the summary into ``out``.

    Label PNGs hold train ids with the palette of the label space, confidence PNGs 255ths of the largest
    probability. Images that the manifest of ``out`` has already are left alone, unless they, the model or the options
    changed. Videos come after the images (``predict_video``).

    Args:
        checkpoint: A ``model.safetensors``, or a model exported from one (which runs on the CPU).
        out: Result folder; files of other images that lie there stay.
        geometry: What is known of the images.
        ids_of: Data set whose own ids label PNGs hold (``original_ids``), without a palette; None = train ids.
        frames: Which frames of videos.
        smooth: Weight of ``Smoothing`` over the frames of a video; 0 = none.
        jobs: Threads for decoding, measuring and writing.
        say: Told in one line what each image was taken for.
        settings: height, sliding, views, source_colours and dtype, as in ``Model.predict``.

    Raises:
        ValueError: no images, or no model.
        OSError: disk full, or ``out`` cannot be written.
    """
    images = list(dict.fromkeys(map(one_name, images)))
    if not images:
        raise ValueError("no images given; name at least one image file")
    settings = {**dict.fromkeys(("height", "sliding", "views", "dtype")), "source_colours": 0.0, **settings}
    if (height := settings["height"]) is not None and height < MIN_SIDE:
        raise ValueError(f"height must be at least {MIN_SIDE} pixels, found {height}")
    model = load(checkpoint, device=device)
    model.check_colours(settings["source_colours"])
    Smoothing(smooth)
    ids = None if ids_of is None else original_ids(ids_of, model.space)
    options = settings | {"geometry": asdict(geometry), "ids": ids, "dtype": str(settings["dtype"])}
    options["views"] = None if settings["views"] is None else asdict(settings["views"])
    table = None if ids is None else id_table(ids)

    def tell(path: Path, view: View) -> None:
        if say is not None:
            say(f"{path}: {view}{how_else(view)}")

    with explain_disk_full(out):
        for folder in PREDICTED_FOLDERS:
            # An out that cannot be written is told before the first prediction.
            (out / folder).mkdir(parents=True, exist_ok=True)
        records = Records(out, describe_model(model), options)
        records.write_manifest()
        names = records.names(images)
        wanted = asked(frames, smooth)
        todo = [path for path in images if not records.done(path, wanted if is_video_name(path) else None)]
        try:
            with progress_bar(enabled=progress) as bar:
                task = bar.add_task("predicting", total=len(images), completed=len(images) - len(todo))
                written = time.monotonic()
                photos = [path for path in todo if not is_video_name(path)]
                pictures = _predicted(model, photos, names, out, geometry, settings, table, jobs, tell)
                how: dict[str, Any] = {"frames": frames, "smooth": smooth, "ids": table}
                how |= {"bar": bar, "tell": tell}
                videos = (
                    (path, predict_video(model, path, names[path], out, geometry, settings, **how))
                    for path in todo
                    if is_video_name(path)
                )
                for path, outcome in chain(pictures, videos):
                    bar.advance(task)
                    if isinstance(outcome, str):
                        records.images.pop(str(path), None)
                        records.failures[str(path)] = outcome
                        continue
                    records.images[str(path)] = outcome
                    if time.monotonic() - written > MANIFEST_SECONDS:
                        records.write_manifest()
                        written = time.monotonic()
        finally:
            records.write_manifest()
        summary = records.write_summary(model.space)
    labels = [
        out / records.images[str(path)]["files"]["label"] for path in images if str(path) in records.images
    ]
    failures = [(Path(image), reason) for image, reason in records.failures.items()]
    return PredictResult(labels, summary, failures, len(images) - len(todo), records.manifest())


def how_else(view: View) -> str:
    """How to say otherwise, of images whose kind was guessed from their pixels alone."""
    if not view.guessed:
        return ""
    if view.wrap:
        return "; if it is a photograph: --projection pinhole, if its ends do not meet: --no-wrap"
    return "; if it is a full circle: --projection erp"


def _predicted(
    model: Model,
    paths: Sequence[Path],
    names: dict[Path, str],
    out: Path,
    geometry: Geometry,
    settings: dict[str, Any],
    ids: np.ndarray | None,
    jobs: int,
    tell: Callable[[Path, View], None],
) -> Iterator[tuple[Path, dict[str, Any] | str]]:
    """(image, record or why not) in order: decoded ahead, written behind, by ``jobs`` threads."""
    depth = 1  # how many may wait on either side; how large images are is not known before the first

    def label(found: Picture | str) -> Prediction | str:
        nonlocal depth
        if isinstance(found, str):
            return found
        depth = max(1, min(AHEAD * jobs, PIXELS_WAITING // found.image[..., 0].size))
        try:
            return model.label(found, **settings)
        except DataError as error:
            return str(error)
        except ValueError as error:  # such as an exported model that takes another size
            return f"{found.path}: {error}"

    def write(path: Path, found: Prediction | str) -> tuple[dict[str, Any] | str, View | None]:
        if isinstance(found, str):
            return found, None
        try:
            return _write(out, names[path], path, found, ids)
        except FileNotFoundError as error:
            if path.exists():
                raise
            return explained_error(error), None

    with ThreadPoolExecutor(jobs, thread_name_prefix="panoda") as pool:
        opened = _ahead(
            pool, lambda path: open_image(model, path, geometry), ((p,) for p in paths), lambda: depth
        )
        labelled = ((path, label(found)) for path, found in zip(paths, opened, strict=True))
        written = _ahead(pool, write, labelled, lambda: depth)
        for path, (outcome, view) in zip(paths, written, strict=True):
            if view is not None:
                tell(path, view)
            yield path, outcome


def _ahead(
    pool: ThreadPoolExecutor,
    call: Callable[..., T],
    items: Iterable[tuple[Any, ...]],
    depth: Callable[[], int],
) -> Iterator[T]:
    """Results of ``call(*item)`` in order, of which ``depth()`` may be under way or wait."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(call, *item))
        while len(waiting) > depth():
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


def open_image(model: Model, path: Path, geometry: Geometry = AUTO) -> Picture | str:
    """The decoded image, or why it cannot be predicted."""
    if not path.is_file():
        return f"{path}: {'a folder' if path.is_dir() else 'no such file'}"
    if not is_image_name(path):
        if path.suffix.lower() in UNSTITCHED:
            return f"{path}: fisheye pictures; stitch it with the camera's program, and give the result"
        ends = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        return f"{path}: not the name of an image or video, expected one that ends in {ends}"
    try:
        return model.open(path, geometry)
    except DataError as error:
        return str(error)
    except OSError as error:
        return explained_error(error)


def _write(
    out: Path, name: str, path: Path, found: Prediction, ids: np.ndarray | None
) -> tuple[dict[str, Any], View]:
    """Write the files of one prediction; returns its record and what it was taken for."""
    files = {
        "label": f"labels/{name}.png",
        "confidence": f"confidence/{name}.png",
        "overlay": f"overlays/{name}.jpg",
    }
    label = label_png(found.label, found.space) if ids is None else Image.fromarray(ids[found.label])
    with staged_file(out / files["label"]) as aside:
        label.save(aside, format="PNG")
    with staged_file(out / files["confidence"]) as aside:
        Image.fromarray(found.confidence_255).save(aside, format="PNG", compress_level=1)
    with staged_file(out / files["overlay"]) as aside:
        save_jpeg(found.overlay(), aside, quality=90)
    return describe(found, path, name, files), found.view


def id_table(ids: Sequence[int]) -> np.ndarray:
    """(256,) table from train id to the ids of another numbering: uint8, or uint16 where one is above 255."""
    table = np.full(256, IGNORE_INDEX, dtype=np.uint16 if max(ids) > 255 else np.uint8)
    table[: len(ids)] = ids
    return table


def original_ids(dataset: str, space: LabelSpace) -> list[int]:
    """The id in a data set's own label files of every class of a space, by class name; the lowest where several are.

    Args:
        dataset: Name of a built-in declaration (``panoda data list``), or the path of one.

    Raises:
        ValueError: unknown data set, labels in colours, or one without a class of the space.

    Example:
        >>> from panoda.labels import get_label_space
        >>> original_ids("cityscapes", get_label_space("cs13"))[:4]
        [7, 8, 11, 12]
    """
    labels = read_declaration(dataset).labels
    if labels is None or labels.encoding != "ids":
        raise ValueError(
            f"{dataset}: no label ids ({'no labels' if labels is None else 'labels in colours'})"
        )
    theirs = get_label_space(space_of(labels, dataset))
    found: dict[str, int] = {}
    for raw, train in sorted(encoding_of(labels, dataset).table, reverse=True):
        if train != IGNORE_INDEX and raw >= 0:
            found[theirs.names[train]] = raw
    missing = [name for name in space.names if name not in found]
    if missing:
        raise ValueError(f"{dataset}: no label of {', '.join(missing)}, which the model predicts")
    return [found[name] for name in space.names]
