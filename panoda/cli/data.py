"""The command ``panoda data``: what data sets there are, how to get one, whether what lies here is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from panoda.data.formats.declaration import Declaration, built_in, default_folder, read_declaration
from panoda.labels import SPACES, get_label_space, remap_targets

data = typer.Typer(help="Data sets: list, get, check.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A built-in data set (see `panoda data list`) or a declaration file.")
]
Folder = Annotated[Path | None, typer.Option(help="The data set's folder; default data/downloads/NAME.")]


@data.command("list")
def list_command() -> None:
    """List the built-in data sets: size, licence, how each is obtained, what is present here."""
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("data set", overflow="fold")
    table.add_column("GB", justify="right", no_wrap=True)
    for title in ("licence", "how to get it", "present here"):
        table.add_column(title, overflow="fold")
    for name in built_in():
        declaration = read_declaration(name)
        size = "-" if declaration.size_gb is None else f"{declaration.size_gb:g}"
        cells = (name, declaration.title, size, declaration.licence, how(declaration), present(declaration))
        table.add_row(*(escape(cell) for cell in cells))
    Console().print(table)
    typer.echo("`panoda data get NAME` fetches one; your own: `panoda data check FILE.yaml --path FOLDER`")


@data.command()
def get(name: Name, path: Folder = None) -> None:
    """Fetch, verify and unpack a data set; say what has to be done by hand."""
    # Imported here: listing needs none of it.
    from panoda.data.acquire.obtain import explain_by_hand, explain_kept_out, explain_missing, obtain
    from panoda.data.formats.scan import has_images

    declaration = read_declaration(name)
    folder = path or default_folder(declaration)
    result = obtain(declaration, folder, progress=True, say=typer.echo)
    splits = declaration.splits.values()
    here = bool(declaration.files) or folder.is_dir() and any(has_images(folder, split) for split in splits)
    if not result.complete or not here:
        typer.echo(explain_by_hand(declaration, folder))
    for archive in result.unpacked:
        state = "was unpacked before" if archive.already else "unpacked"
        typer.echo(f"{archive.archive}: {state}, {archive.files} files, {archive.bytes / 1e9:.2f} GB")
        for line in explain_kept_out(archive):
            typer.echo(f"  {line}")
    if not result.complete:
        raise ValueError(explain_missing(result))
    if not here:
        raise ValueError(f"{folder}: no image of {declaration.name} there yet")
    option = f" --path {path}" if path else ""
    typer.echo(f"next: panoda data check {name}{option}")


@data.command()
def check(
    name: Name,
    path: Folder = None,
    out: Annotated[Path | None, typer.Option(help="Write the report as parquet, too.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default one per core.")] = None,
) -> None:
    """Read every file of a data set and report all that is wrong; exit status 1 when anything is."""
    from panoda.data.check.check import check_dataset
    from panoda.data.check.report import show, write_parquet

    declaration = read_declaration(name)
    report = check_dataset(name, path or default_folder(declaration), workers=workers, progress=True)
    show(report, Console())
    if out is not None:
        write_parquet(report, out)
        typer.echo(f"report in {out}")
    if not report.ok:
        raise typer.Exit(1)


@data.command()
def classes(
    space: Annotated[str, typer.Argument(help="A label space, or its YAML file; none lists all.")] = "",
) -> None:
    """Print the classes of a label space with their ids and colours, and what it can be mapped to."""
    if not space:
        for name in SPACES:
            typer.echo(f"{name}  {get_label_space(name).num_classes} classes")
        return
    chosen = get_label_space(space)
    for number, (name, colour) in enumerate(zip(chosen.names, chosen.palette, strict=True)):
        typer.echo(f"{number:3d}  {name}  {','.join(map(str, colour))}")
    if others := remap_targets(space):
        typer.echo(f"can be mapped to {', '.join(others)}")


def how(declaration: Declaration) -> str:
    """How a data set is obtained, in a few words."""
    ways = {
        "Cityscapes account": any(file.cityscapes for file in declaration.files),
        "Google Drive": any(file.google_drive for file in declaration.files),
        "open link": any(file.url for file in declaration.files),
        "by hand": not declaration.files,
        "by form, then by hand": any(
            not (file.url or file.google_drive or file.cityscapes) for file in declaration.files
        ),
    }
    return ", ".join(way for way, used in ways.items() if used)


def present(declaration: Declaration) -> str:
    """Which splits have images in the default folder, and which archives lie there."""
    from panoda.data.formats.scan import has_images

    folder = default_folder(declaration)
    splits = [name for name, split in declaration.splits.items() if has_images(folder, split)]
    if len(splits) == len(declaration.splits):
        return "all splits" if len(splits) > 1 else "yes"
    if splits:
        return ", ".join(splits) if len(splits) < 4 else f"{len(splits)} of {len(declaration.splits)} splits"
    arrived = sum((folder / file.name).exists() for file in declaration.files)
    return f"{arrived} of {len(declaration.files)} files, not unpacked" if arrived else "no"
