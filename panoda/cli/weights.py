"""The command ``panoda weights``: what pretrained weights there are, get, import and look at some."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from panoda.data.formats.browse import walk
from panoda.system.files import sha256_file

if TYPE_CHECKING:
    from panoda.models.weights.importing import Imported

FOLDER = Path("data/weights")
SHOWN = 8

weights = typer.Typer(help="Pretrained weights: list, get, import, show.", no_args_is_help=True)

Force = Annotated[bool, typer.Option("--force", help="Replace another file of that name.")]
Name = Annotated[str | None, typer.Option("--name", help="Name below data/weights; default as the source's.")]


@weights.command("list")
def list_command(
    encoder: Annotated[
        str | None,
        typer.Option(help="Only what timm has for this network, such as vit:vit_base_patch16_224."),
    ] = None,
) -> None:
    """List known pretrained weights and what lies in data/weights."""
    # Imported here, as below: the other commands start without torch.
    from panoda.models.weights.catalogue import BY_HAND, VITS
    from panoda.models.weights.hub import tags

    table = _table("weights", "what", "licence", "how to get them")
    if encoder is None:
        for known in BY_HAND:
            table.add_row(*(escape(cell) for cell in (known.name, known.what, known.licence, known.how)))
        names = [*(f"pvt_v2_b{size}" for size in range(6)), *VITS]
    else:
        names = tags(encoder)
    for name in names:
        table.add_row(*(escape(cell) for cell in _row_of_timm(name)))
    console = Console()
    console.print(table)
    here = _table("file", "encoder", "decoder", "classes", "licence", "source")
    found = walk(FOLDER) if FOLDER.is_dir() else ()
    for path in sorted(FOLDER / name for name, cause in found if not cause and name.endswith(".safetensors")):
        here.add_row(path.relative_to(FOLDER).as_posix(), *(escape(cell) for cell in _row_of_file(path)))
    if here.rows:
        console.print(here)
        typer.echo(f"these lie in {FOLDER}; name one in params.yaml as model.weights")
    else:
        typer.echo(f"nothing in {FOLDER} yet")


@weights.command()
def get(
    name: Annotated[
        str,
        typer.Argument(
            help="vit:NAME, timm:NAME, a name of timm, hf-hub:OWNER/NAME, or segformer-b0-cityscapes."
        ),
    ],
    encoder: Annotated[
        str | None, typer.Option(help="The network, for a hub repository that does not say it.")
    ] = None,
    force: Force = False,
) -> None:
    """Bring published weights into data/weights: an installed package's, or a download (safetensors)."""
    from panoda.models.weights.hub import fetch, imagenet

    imported, file_name = fetch(name, encoder=encoder) if encoder else imagenet(name)
    _keep(imported, FOLDER / file_name, force)


@weights.command("import")
def import_command(
    file: Annotated[
        Path, typer.Argument(help="A .pth, .pt, .bin or .safetensors file, or a folder of transformers.")
    ],
    encoder: Annotated[str | None, typer.Option(help="Encoder, where the file does not tell.")] = None,
    decoder: Annotated[str | None, typer.Option(help="Decoder that the file must have.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes that the file must have.")] = None,
    label_space: Annotated[str | None, typer.Option(help="Label space of the file's classes.")] = None,
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="Leave the decoder out.")] = False,
    part: Annotated[
        str | None, typer.Option(help="Of several sets of weights the one to take; default the averaged one.")
    ] = None,
    name: Name = None,
    force: Force = False,
) -> None:
    """Bring a checkpoint into data/weights, strictly; nothing in the file is executed."""
    from panoda.models.weights.importing import file_in, import_file

    imported = import_file(
        file,
        source=_source(file_in(file)),
        encoder=encoder,
        decoder=decoder,
        num_classes=num_classes,
        label_space=label_space,
        encoder_only=encoder_only,
        part=part,
    )
    stem = Path(name or file.name).name
    for suffix in (".index.json", ".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"):
        stem = stem.removesuffix(suffix)
    _keep(imported, FOLDER / f"{stem}.safetensors", force)


@weights.command()
def show(file: Annotated[str, typer.Argument(help="A path, or a name below data/weights.")]) -> None:
    """Print what a file of weights is, and its entries by part."""
    from panoda.models.weights.pretrained import read_weights

    path = next(
        (p for p in (Path(file), FOLDER / file, FOLDER / f"{file}.safetensors") if p.is_file()), Path(file)
    )
    tensors, card = read_weights(path)
    for key, value in card.model_dump(mode="json").items():
        if value not in (None, [], ""):
            typer.echo(f"{key}: {_listed(value) if isinstance(value, list) else value}")
    table = Table("part", "entries", "parameters", "types", "first entry")
    parts: dict[str, list[str]] = {}
    for key in tensors:
        parts.setdefault(_part(key), []).append(key)
    for part, keys in parts.items():
        kinds = Counter(str(tensors[key].dtype).removeprefix("torch.") for key in keys)
        first = f"{keys[0].removeprefix(part)} {tuple(tensors[keys[0]].shape)}"
        count = f"{sum(tensors[key].numel() for key in keys):,}"
        table.add_row(part, str(len(keys)), count, ", ".join(kinds), escape(first))
    total = sum(value.numel() for value in tensors.values())
    table.add_row("all", str(len(tensors)), f"{total:,}", "", "", style="bold")
    Console().print(table)


def _source(file: Path) -> str:
    """Name and SHA-256 of a file; of an index those of the files it names."""
    from panoda.models.core.file_kind import shards

    if not file.is_file():
        return file.name
    parts = [part for part in shards(file) if part.is_file()] or [file]
    return ", ".join((file.name, *(f"SHA-256 {sha256_file(part)}" for part in parts)))


def _keep(imported: Imported, path: Path, force: bool) -> None:
    """Write weights, never over other ones unless told to, and say what they are."""
    from panoda.models.weights.pretrained import encoded

    data, card = encoded(imported.tensors, imported.model or imported.card), imported.card
    if path.is_file() and path.read_bytes() != data and not force:
        raise ValueError(f"{path}: other weights have that name; choose one with --name, or use --force")
    what = f"{card.encoder} with {card.decoder}, {card.num_classes} classes" if card.decoder else card.encoder
    typer.echo(f"{card.source}: {what} (layout {card.layout}), {len(imported.tensors)} entries")
    lines = {
        "dropped": list(card.dropped),
        "resized": list(card.resized),
        "new in a model (starts at random)": list(_new(imported)),
        "missing, unexpected or of another shape": [],
    }
    for title, entries in lines.items():
        typer.echo(f"  {title}: {_listed(entries) if entries else 'nothing'}")
    from panoda.system.files import staged_file

    with staged_file(path) as aside:
        aside.write_bytes(data)
    typer.echo(f"wrote {path}; use it with model.encoder {card.encoder} and model.weights {path.name}")
    if imported.model:
        typer.echo(f"a complete model: panoda predict IMAGES --checkpoint {path} --out FOLDER")


def _table(*titles: str) -> Table:
    """A table that breaks long cells, because addresses are there to be copied."""
    table = Table()
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _new(imported: Imported) -> list[str]:
    card = imported.card
    found = [] if card.decoder else ["the decoder"]
    if card.encoder.startswith("mit"):
        found.append("the deformation, when model.encoder is the trans4pass of that size")
    if card.decoder:
        found.append("the layers that predict classes, for another label space")
    return found


def _listed(entries: list[str]) -> str:
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return f"{len(entries)}: {', '.join(entries[:SHOWN])}{more}"


def _part(key: str) -> str:
    """The part of the model an entry belongs to, two or three names deep."""
    names = key.split(".")
    depth = 3 if names[:2] == ["encoder", "net"] else 2
    return ".".join(names[:depth])


def _row_of_timm(name: str) -> tuple[str, str, str, str]:
    from panoda.models.weights.hub import published

    found = published(name)
    what = f"ImageNet-normalised {found.tag}" if found.mean == (0.485, 0.456, 0.406) else found.tag
    return found.encoder, what, found.licence or "not stated", f"`panoda weights get {name}`"


def _row_of_file(path: Path) -> tuple[str, ...]:
    from panoda.models.weights.pretrained import read_card

    try:
        card = read_card(path)
    except ValueError as error:
        return ("-", "-", "-", "-", str(error))
    classes = "-" if card.num_classes is None else f"{card.num_classes} ({card.label_space or 'unknown'})"
    return (card.encoder, card.decoder or "-", classes, card.licence or "not stated", card.source)
