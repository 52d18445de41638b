"""The commands ``panoda export`` (models for other runtimes) and ``panoda models`` (a table of models)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from panoda.deployment.export import ExportResult


def export_command(
    out: Annotated[Path, typer.Option(help="Folder for model.onnx or model.pt2.")],
    checkpoint: Annotated[Path | None, typer.Argument(help="A model.safetensors.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder whose model to export.")] = None,
    format: Annotated[Literal["onnx", "torch"], typer.Option(help="torch: of torch.export.")] = "onnx",
    height: Annotated[int | None, typer.Option(help="Fixed height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Fixed width in pixels.")] = None,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Insist on open height and width; without sizes they stay open where the network allows it.",
        ),
    ] = False,
    batch: Annotated[str, typer.Option(help="dynamic, or the number of images per call.")] = "dynamic",
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 20,
    uint8: Annotated[bool, typer.Option("--uint8", help="Take RGB bytes; normalise inside.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Give train ids instead of logits.")] = False,
    tolerance: Annotated[float, typer.Option(help="Largest difference of a logit.")] = 1e-3,
) -> None:
    """Export a checkpoint as ONNX or torch.export program, and check it against the model."""
    if (checkpoint is None) == (run is None):
        raise ValueError("name a checkpoint or give --run, one of the two")
    if (height is None) != (width is None):
        raise ValueError("give both --height and --width, or none of them")
    if dynamic and height is not None:
        raise ValueError("--dynamic leaves the size open; leave out --height and --width")
    if batch != "dynamic" and not batch.isdigit():
        raise ValueError(f"--batch is {batch!r}; expected `dynamic` or a number of images")
    # Imported here: the other commands start without torch.
    from panoda.deployment.export import export_model
    from panoda.models.core.checkpoint import load_model

    model, card = load_model(checkpoint or (run or Path()) / "model.safetensors")
    result = export_model(
        model,
        card,
        out,
        format=format,
        size=None if height is None or width is None else (height, width),
        dynamic=dynamic,
        batch=None if batch == "dynamic" else int(batch),
        opset=opset,
        uint8=uint8,
        labels=labels,
        tolerance=tolerance,
    )
    typer.echo(explain(result))


def explain(result: ExportResult) -> str:
    """What was exported, how well it agrees, how large it is."""
    card = result.card
    sides = f"height and width {card.smallest} to {card.largest}"
    fixed = f"{card.height}x{card.width}"
    images = "images" if card.batch is None else f"{card.batch} images"
    kind = {"float": "normalised RGB", "uint8": "RGB bytes"}[card.input]
    lines = [f"{result.path}: {images} of {kind}, {sides if card.height is None else fixed} -> {card.output}"]
    if result.fixed:
        lines.append(f"height and width are fixed: {result.fixed}; other sizes take an export of their own")
    for check in result.checks:
        apart = "" if check.difference is None else f", logits differ by at most {check.difference:.1e}"
        count, height, width = check.shape
        lines.append(
            f"checked with {count} x {height}x{width}: {100 * check.agreement:.3f} % labels equal{apart}"
        )
    lines.append(f"{result.megabytes:.1f} MB")
    return "\n".join(lines)


def models_command(
    size: Annotated[
        list[str] | None, typer.Option(help="HEIGHTxWIDTH, repeatable; default 512x1024 and 400x2048.")
    ] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="Encoder, repeatable.")] = None,
    decoder: Annotated[list[str] | None, typer.Option(help="Decoder, repeatable.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 19,
    fast: Annotated[bool, typer.Option("--fast", help="Count parameters and operations only.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default PyTorch's.")] = None,
) -> None:
    """Table of models: parameters, operations, latency and memory at given image sizes."""
    # Imported here: the other commands start without torch.
    from rich.console import Console

    from panoda.deployment import model_table as table
    from panoda.system.context import resolve_device

    device = str(resolve_device(device))
    sizes = [table.parse_size(text) for text in size or ("512x1024", "400x2048")]
    pairs = table.pairs(encoder or [], decoder or [])
    options: dict[str, Any] = {"num_classes": classes, "fast": fast, "device": device, "threads": threads}
    rows = list(table.measure(pairs, sizes, **options, progress=True))
    console = Console()
    console.print(table.as_table(rows, sizes, fast=fast), width=None if console.is_terminal else 200)
    for row in rows:
        if row.problem:
            typer.echo(f"{row.encoder} with {row.decoder}: {row.problem}")
    typer.echo(table.footnote(device, threads, fast=fast))
