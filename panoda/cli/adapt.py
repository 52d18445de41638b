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
    """Adapt a model to a folder of panoramas, without labels or source images; a killed run goes on."""
    # Imported here: the other commands start without torch.
    from panoda.config import RuntimeParams
    from panoda.pipeline.models import find_model
    from panoda.pipeline.own_panoramas import adapt_to_folder

    if not panoramas.is_dir():
        raise ValueError(f"{panoramas}: no such folder; name the folder that your panoramas are in")
    model = find_model(checkpoint)
    metrics = adapt_to_folder(
        panoramas, model, out, steps=steps, seed=seed, runtime=RuntimeParams(device=device)
    )
    typer.echo(
        f"{out / 'model.safetensors'}: the teacher labels {100 * metrics['teacher/kept_share']:.0f} % of the "
        f"pixels. Label images with `panoda predict IMAGES --checkpoint {out / 'model.safetensors'} --out FOLDER`"
    )
