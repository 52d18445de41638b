"""The command ``panoda annotate``: predictions to an annotation tool, and corrected labels back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from panoda.cli.predict import read_views

annotate = typer.Typer(help="Correct predictions in CVAT or Label Studio.", no_args_is_help=True)


@annotate.command("export")
def export_command(
    labelled: Annotated[Path, typer.Argument(help="Folder that `panoda predict` wrote.")],
    out: Annotated[Path, typer.Option(help="New folder for pictures, the tool's files and task.json.")],
    tool: Annotated[Literal["cvat", "label-studio"], typer.Option("--format", help="The tool.")],
    views: Annotated[
        str | None,
        typer.Option(
            help="Cut panoramas into perspective tiles: '{fov_deg: 90, pitches: [-45, 0, 45]}' or {} for the defaults."
        ),
    ] = None,
    chosen: Annotated[
        Path | None, typer.Option(help="chosen.csv of `panoda rank`: only what is chosen there.")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="label-studio: address of the pictures; default: its local files."),
    ] = None,
) -> None:
    """Write a task for CVAT or Label Studio: pictures, and predictions as labels to correct.

    The exit status is 0 only when every image is in it.
    """
    # Imported here: the other commands start without torch.
    from panoda.annotation.export import export_task

    tiles = read_views(views)
    result = export_task(labelled, out, tool=tool, views=tiles, chosen=chosen, prefix=prefix, progress=True)
    count = sum(len(photograph.names) for photograph in result.task.photographs)
    typer.echo(
        f"{count} pictures of {len(result.task.photographs)} images in {out}; next steps: docs/annotation.md"
    )
    _fail(result.failures)


@annotate.command("import")
def import_command(
    task: Annotated[Path, typer.Argument(help="Folder that `panoda annotate export` wrote.")],
    out: Annotated[Path, typer.Option(help="New folder for the corrected data set.")],
    exported: Annotated[
        Path | None,
        typer.Argument(help="What the tool exported; default: export.zip, export.json or export/ in TASK."),
    ] = None,
) -> None:
    """Put corrected labels back onto their images, as a declared data set.

    The exit status is 0 only when every annotated image is in it.
    """
    from panoda.annotation.corrected import DATASET, import_task

    result = import_task(task, out, exported=exported)
    for name, share in result.changed.items():
        typer.echo(f"{name}: {100 * share:.2f} % of the pixels changed")
    for line in result.left_out:
        typer.echo(line, err=True)
    file = out / DATASET
    typer.echo(f"{len(result.changed)} images; next: panoda data check {file} --path {out}")
    _fail(result.failures)


def _fail(reasons: list[str]) -> None:
    for reason in reasons:
        print(reason, file=sys.stderr)
    if reasons:
        raise ValueError(f"{len(reasons)} images are left out, see above")
