"""The command ``panoda rank``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from panoda.cli.predict import Checkpoint, Projection, RunFolder, expand, model_file


def rank_command(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images of any size, folders, patterns such as 'a/**/*.jpg', or @LIST: one a line."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for chosen.csv, chosen.txt and chosen.jpg.")],
    count: Annotated[int, typer.Option(min=1, help="How many to choose.")] = 10,
    labelled: Annotated[
        list[str] | None,
        typer.Option(
            help="Images that are labelled already, as IMAGES: what is like them is not chosen; repeatable."
        ),
    ] = None,
    duplicate: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.99,
            help="Images closer than this share of the largest distance between two are near duplicates.",
        ),
    ] = 0.05,
    run: RunFolder = None,
    checkpoint: Checkpoint = None,
    projection: Annotated[
        Projection, typer.Option(help="What the images are, as in `panoda predict`.")
    ] = "auto",
    height: Annotated[int | None, typer.Option(help="Working height in pixels.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Say which images to label next: those the model is unsure of and that are unlike each other.

    The exit status is 0 only when every image could be read.
    """
    model = model_file(run, checkpoint)
    # Imported here: the other commands start without torch.
    from panoda.deployment.rank import SHEET, TABLE, rank_files
    from panoda.deployment.view import Geometry
    from panoda.system.context import resolve_device, resolve_precision

    place = resolve_device(device)
    given, files = _images(labelled or [], out), _images(images, out)
    result = rank_files(
        model,
        files,
        out,
        count=count,
        labelled=given,
        duplicate=duplicate,
        height=height,
        geometry=Geometry(projection),
        device=place,
        dtype=resolve_precision("auto", place),
        progress=True,
    )
    for reason in result.failures:
        print(reason, file=sys.stderr)
    for row in result.chosen.itertuples():
        typer.echo(f"{row.rank:3d}  {row.image}: {row.reason} (uncertainty {row.uncertainty:.3f})")
    found, total = len(result.chosen), len(result.table)
    if found < count:
        duplicates = int(result.table["duplicate_of"].notna().sum())
        typer.echo(
            f"{found} chosen, not {count}: of {total} images {duplicates} are near duplicates or labelled; "
            "--duplicate sets what counts as one"
        )
    typer.echo(f"{out / TABLE} has the reason for every image, {out / SHEET} shows the chosen")
    if result.failures:
        raise ValueError(f"{len(result.failures)} images could not be read, see above")


def _images(arguments: list[str], out: Path) -> list[Path]:
    """The files of all arguments without videos, which are said."""
    from panoda.data.formats.images import is_video_name

    files = list(expand(arguments, out))
    for path in filter(is_video_name, files):
        typer.echo(f"left out: {path}: a video; save frames of it as images to rank them", err=True)
    return [path for path in files if not is_video_name(path)]
