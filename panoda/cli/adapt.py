"""The command ``panoda adapt``: a model for one's own panoramas, from a model file and a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def adapt_command(
    panoramas: Annotated[Path, typer.Argument(help="Folder of full panoramas (2:1), without labels.")],
    checkpoint: Annotated[
        str, typer.Option(help="A model.safetensors, or a published name (panoda weights list).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the adapted model.safetensors.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 300,
    seed: Annotated[int, typer.Option(help="Run seed.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Adapt a model to a folder of panoramas, without labels or source images."""
    # Imported here: the other commands start without torch.
    from panoda.pipeline.models import find_model
    from panoda.pipeline.own_panoramas import adapt_to_folder
    from panoda.system.context import RunContext, resolve_device, resolve_precision

    if not panoramas.is_dir():
        raise ValueError(f"{panoramas}: no such folder; name the folder that your panoramas are in")
    place = resolve_device(device)
    context = RunContext(device=place, dtype=resolve_precision("auto", place), progress=True)
    metrics = adapt_to_folder(panoramas, find_model(checkpoint), out, steps=steps, seed=seed, context=context)
    typer.echo(
        f"{out / 'model.safetensors'}: the teacher labels {100 * metrics['teacher/kept_share']:.0f} % of the "
        f"pixels. Label images with `panoda predict IMAGES --checkpoint {out / 'model.safetensors'} --out FOLDER`"
    )
