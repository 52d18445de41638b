"""The command ``panoda view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view_command(
    out: Annotated[Path, typer.Argument(help="Folder that `panoda predict` wrote.")],
    after: Annotated[
        Path | None, typer.Argument(help="Another one of the same photographs, to compare: OUT is before it.")
    ] = None,
    width: Annotated[int, typer.Option(help="Largest width of a picture in the page, in pixels.")] = 2048,
) -> None:
    """Write OUT/view.html, or AFTER/compare.html: look around; one file, which needs no network."""
    # Imported here: the other commands start without torch.
    from panoda.deployment.viewer_page import write_viewer

    folder, before = (out, None) if after is None else (after, out)
    page = write_viewer(folder, before=before, width=width, say=lambda line: typer.echo(line, err=True))
    typer.echo(
        f"{page} ({page.stat().st_size / 1e6:.1f} MB): open it in a browser, {page.resolve().as_uri()}"
    )
