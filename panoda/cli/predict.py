"""The command ``panoda predict``."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
import yaml
from pydantic import ValidationError

from panoda.config.problems import problems
from panoda.config.running import ViewsParams
from panoda.pipeline.table import STAGES

if TYPE_CHECKING:
    from panoda.geometry.views import Views

Projection = Literal["auto", "erp", "band", "pinhole"]
RunFolder = Annotated[Path | None, typer.Option(help="Run folder whose model to use.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Model to use: a file, a published name (panoda weights list), or models:/NAME@adapted."
    ),
]


def predict_command(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images and videos of any size, folders, patterns such as 'a/**/*.jpg', or @LIST: one a line."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for labels/, confidence/, overlays/, manifest.json and summary.csv.")
    ],
    run: RunFolder = None,
    checkpoint: Checkpoint = None,
    projection: Annotated[
        Projection,
        typer.Option(
            help="What the images are: equirectangular, a full circle of some latitudes, or photographs; auto: as "
            "metadata, their ends, the model and their shape say."
        ),
    ] = "auto",
    fov: Annotated[float | None, typer.Option(help="Horizontal field of view in degrees.")] = None,
    lat: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Latitudes of the upper and lower edge of panoramas in degrees, such as 45 -45."),
    ] = None,
    wrap: Annotated[
        bool | None,
        typer.Option("--wrap/--no-wrap", help="Close around the circle; default: full circles."),
    ] = None,
    upright: Annotated[
        bool,
        typer.Option(
            "--upright", help="Level the horizon by the metadata's pitch and roll, and turn labels back."
        ),
    ] = False,
    pitch: Annotated[
        float | None,
        typer.Option(help="With --upright: degrees that the camera looked up, in place of metadata."),
    ] = None,
    roll: Annotated[
        float | None,
        typer.Option(help="With --upright: degrees that the horizon is turned counter-clockwise."),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Working height in pixels.")] = None,
    sliding: Annotated[
        int | None, typer.Option(min=32, help="Predict in sliding windows of so many pixels, 2/3 apart.")
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Mix in perspective views of full circles: '{fov_deg: 90, share: 0.5}' or {} for the defaults "
            "(panoda params evaluate.views)."
        ),
    ] = None,
    source_colours: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Also predict each image in the colours that the model learned from, with this weight beside 1 for "
            "the image as it is: for models that were not adapted.",
        ),
    ] = 0.0,
    ids: Annotated[
        str | None,
        typer.Option(help="Write labels as the ids of this data set (panoda data list), without a palette."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Of videos: so many frames a second; default: every frame.")
    ] = None,
    frames: Annotated[
        str, typer.Option(help="Of videos: from this frame on, counted from 0, and up to that one: 100:200.")
    ] = ":",
    smooth: Annotated[
        float,
        typer.Option(
            help="Of videos: against flicker, weight of the frames before in a mean of probabilities, such as 0.6."
        ),
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, help="Threads that read and write beside the model.")] = 2,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the manifest on standard output, everything else on the other."),
    ] = False,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            help="auto: float32 on a CPU. bfloat16 is faster on CPUs that have it; few labels differ."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Segment panoramas, photographs and 360 videos: labels, confidence, overlays, tables of class shares.

    Says what each file was taken for. Goes on where it stopped: what is done and unchanged is left alone. The exit
    status is 0 only when every image was labelled.
    """
    model = model_file(run, checkpoint)
    # Imported here: the other commands start without torch.
    from panoda.data.formats.images import is_video_name
    from panoda.data.formats.videos import Frames
    from panoda.deployment.exported import is_exported
    from panoda.deployment.predict import predict_files
    from panoda.deployment.view import Geometry
    from panoda.system.context import resolve_device, resolve_precision
    from panoda.system.machine import keep_freed_memory

    if precision != "auto" and is_exported(model):
        raise ValueError(f"{model}: an exported model computes as it was exported; leave out --precision")
    keep_freed_memory()
    geometry = Geometry(projection, fov, lat, wrap, upright, pitch, roll)
    first, stop = _range(frames)
    place = resolve_device(device)
    result = predict_files(
        model,
        list(expand(images, out)),
        out,
        height=height,
        geometry=geometry,
        views=read_views(views),
        source_colours=source_colours,
        sliding=None if sliding is None else (sliding, 2 * sliding // 3),
        ids_of=ids,
        frames=Frames(fps, first, stop),
        smooth=smooth,
        jobs=jobs,
        device=place,
        dtype=resolve_precision(precision, place),
        progress=True,
        say=lambda line: typer.echo(line, err=as_json),
    )
    for _, reason in result.failures:
        print(reason, file=sys.stderr)
    kept = f", {result.kept} of them already there" if result.kept else ""
    typer.echo(f"{_counted(result.labels)} in {out}{kept}; summary in {result.summary}", err=as_json)
    if as_json:
        typer.echo(json.dumps(result.manifest, indent=2))
    if result.failures:
        total = len(result.labels) + len(result.failures)
        what = "files" if any(is_video_name(path) for path, _ in result.failures) else "images"
        raise ValueError(f"{len(result.failures)} of {total} {what} could not be read, see above")


def _range(text: str) -> tuple[int, int | None]:
    first, colon, stop = text.partition(":")
    if not colon or not (first or "0").isdecimal() or not (stop or "0").isdecimal():
        raise ValueError(f"--frames {text!r}: expected FIRST:STOP, such as 100:200, 100: or :200")
    return int(first or 0), int(stop) if stop else None


def _counted(labels: list[Path]) -> str:
    videos = sum(path.suffix == ".mkv" for path in labels)
    images = len(labels) - videos
    counts = [f"{count} {what}" for count, what in ((images, "images"), (videos, "videos")) if count]
    return " and ".join(counts) or "0 images"


def read_views(text: str | None) -> Views | None:
    """Option --views: a mapping as in params.yaml; None = none."""
    if text is None:
        return None
    from panoda.geometry.views import Views

    try:
        tree = yaml.safe_load(text)
        tree = tree if isinstance(tree, dict) else {"fov_deg": tree}
        return Views(**ViewsParams.model_validate(tree).model_dump())
    except yaml.YAMLError as error:
        raise ValueError(f"--views {text!r}: expected a mapping such as '{{fov_deg: 90}}'") from error
    except ValidationError as error:
        raise ValueError(f"--views {text!r}: {'; '.join(problems(ViewsParams, tree, error))}") from error


def model_file(run: Path | None, checkpoint: str | None) -> Path:
    """The file of the model that the options name; without any that of the pipeline's last adaptation.

    Raises:
        ValueError: both options, or no such model.
    """
    if run is not None and checkpoint is not None:
        raise ValueError("give --run or --checkpoint, not both")
    if checkpoint is not None:
        from panoda.pipeline.models import find_model

        return find_model(checkpoint)
    if run is not None:
        path = run / "model.safetensors"
        if not path.is_file():
            raise ValueError(f"{path}: this run has no model; name a run of pretrain, warmup or adapt")
        return path
    later = list(Path(STAGES["rounds"].out).glob("round*/adapt/model.safetensors"))
    first = Path(STAGES["adapt"].out) / "model.safetensors"
    path = max(later, key=lambda file: int(file.parts[-3].removeprefix("round")), default=first)
    if not path.is_file():
        raise ValueError(f"{path}: no adapted model yet; run `dvc repro`, or give --run or --checkpoint")
    return path


def expand(arguments: list[str], out: Path) -> Iterator[Path]:
    """The files of all arguments: lists read, patterns filled in, the images below folders."""
    from panoda.system.files import read_text

    for argument in arguments:
        if argument.startswith("@"):
            lines = [line.strip() for line in read_text(Path(argument[1:]).expanduser()).splitlines()]
            for line in lines:
                if line and not line.startswith("#"):
                    yield from _files(line, out)
        else:
            yield from _files(argument, out)


def _files(text: str, out: Path) -> Iterator[Path]:
    """The files of a path or pattern; for a folder the images in it, without those that prediction wrote there."""
    from panoda.data.formats.browse import PREDICTED_FOLDERS, images_among, images_below
    from panoda.data.formats.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    path = Path(text).expanduser()
    pattern = not path.exists() and glob.has_magic(text)
    if not pattern and not path.is_dir():
        yield path
        return
    own = [(out / name).resolve() for name in PREDICTED_FOLDERS]
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if pattern:
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = [file for file in files if not file.is_dir() and file.parent.resolve() not in own]
        found, left = images_among(files, suffixes=suffixes)
    else:
        found, left = images_below(path, lambda name: (path / name).resolve() not in own, suffixes=suffixes)
    for line in left.lines():
        typer.echo(line, err=True)
    if not found and pattern:
        raise ValueError(f"{text}: no images match this pattern, and no videos")
    if not found:
        ends = ", ".join(sorted(suffixes))
        raise ValueError(
            f"{path}: no images in this folder, and no videos; expected files that end in {ends}"
        )
    yield from found
