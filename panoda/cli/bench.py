"""The command ``panoda bench``; its code is in ``benchmarks/`` of a checkout, which no wheel holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

CHECKOUT = Path(__file__).resolve().parents[2]


def bench_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="deform, mpa-step, mae, pseudo-labels, loader, growth, predict, flows; none = all."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["float32", "bf16"], typer.Option(help="Of our side; the reference is always float32.")
    ] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile our model.")] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Source 1024x512, target 2048x400, batch 2.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Smallest sizes: does everything run?")] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 = every core.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Calls per median.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, images and labels.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.md.")] = Path("runs/bench"),
) -> None:
    """Time the engine beside plain references: medians of interleaved calls, side by side in one run."""
    if not (CHECKOUT / "benchmarks" / "bench.py").is_file():
        raise ValueError(
            f"{CHECKOUT}: no benchmarks/ here; panoda bench runs from a checkout of the project, "
            "not from an installed wheel: clone it and install it with --editable"
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    # Imported here: the other commands start without torch.
    import torch

    from benchmarks.bench import run  # type: ignore[import-not-found, unused-ignore]
    from benchmarks.timing import Settings  # type: ignore[import-not-found, unused-ignore]
    from panoda.system.context import resolve_device, set_threads
    from panoda.system.machine import keep_freed_memory

    set_threads(threads)
    keep_freed_memory()  # for both sides
    settings = Settings(
        device=resolve_device(device),
        dtype=torch.bfloat16 if precision == "bf16" else None,
        compile=compile,
        published=published,
        repeats=repeats,
        quick=quick,
        seed=seed,
    )
    table = run(names or [], settings, out, show=typer.echo)
    typer.echo(f"\n{table} and {table.with_suffix('.json')}")
