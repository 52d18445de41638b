"""The command ``panoda classify``: what an encoder is worth for recognising images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from panoda.config.problems import problems

classify = typer.Typer(
    help="Judge an encoder by classification: fine-tuning, a linear probe, accuracy on val.",
    no_args_is_help=True,
)

Data = Annotated[
    str,
    typer.Argument(
        help="Folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or `city`: objects of the embedded city."
    ),
]
EncoderName = Annotated[str, typer.Option(help="File of MAE weights (released or own), or a name of timm.")]
Random = Annotated[bool, typer.Option("--random", help="Start from random weights, of the same sizes.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(min=2, help="Images per step.")]
Seed = Annotated[int, typer.Option(min=0, help="Run seed.")]
Out = Annotated[Path | None, typer.Option(help="Result folder; default runs/classify-ACTION-TIME-ID.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of any other parameter; repeatable (--show lists them)."),
]
Show = Annotated[bool, typer.Option("--show", help="List the parameters and stop.")]


def _training_command(action: str, text: str) -> None:
    @classify.command(action, help=text)
    def command(
        data: Data,
        encoder: EncoderName = "vit_base_patch16_224.mae",
        random: Random = False,
        epochs: Epochs = None,
        batch_size: BatchSize = None,
        seed: Seed = 0,
        out: Out = None,
        device: Device = "auto",
        change: Set = None,
        show: Show = False,
    ) -> None:
        given = {
            "encoder": encoder,
            "random": random,
            "epochs": epochs,
            "batch_size": batch_size,
            "seed": seed,
        }
        _run(action, data, given, change, out, device, show)


_training_command("finetune", "Train the whole network, with MAE's recipe.")
_training_command("probe", "Freeze the encoder and train a linear layer on it.")


@classify.command()
def evaluate(
    data: Data,
    checkpoint: Annotated[
        str,
        typer.Option(help="A model.safetensors of finetune or probe, or a published fine-tuned MAE file."),
    ],
    heads: Annotated[int, typer.Option(min=0, help="Attention heads, where the file does not say them.")] = 0,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Accuracy of a classifier on val."""
    _run("evaluate", data, {"checkpoint": checkpoint, "heads": heads}, None, out, device, False)


def _run(
    action: str,
    data: str,
    given: dict[str, Any],
    change: list[str] | None,
    out: Path | None,
    device: str,
    show: bool,
) -> None:
    # Imported here: the other commands start without torch.
    from panoda.classification.params import EvaluateParams, FinetuneParams, ProbeParams
    from panoda.cli.app import documentation
    from panoda.config import RuntimeParams
    from panoda.engine.preemption import Preempted
    from panoda.pipeline.classify import classify as run

    kinds: dict[str, Any] = {"finetune": FinetuneParams, "probe": ProbeParams, "evaluate": EvaluateParams}
    kind = kinds[action]
    if show:
        for path, what, default, text in documentation(kind):
            typer.echo(f"{path}  ({what}{default})\n    {text}")
        return
    tree = {
        "data": data,
        **{key: value for key, value in given.items() if value is not None},
        **_changes(change or []),
    }
    try:
        params = kind.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"panoda classify {action}: {'; '.join(problems(kind, tree, error))}") from error
    try:
        place, metrics = run(params, out=out, runtime=RuntimeParams(device=device))
    except Preempted as stopped:
        typer.echo(str(stopped), err=True)
        raise
    typer.echo(f"{place}: top-1 {100 * metrics['top1']:.1f} %, top-5 {100 * metrics['top5']:.1f} % on val")


def _changes(texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE, values as YAML."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected NAME=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {text!r}: the value is no YAML") from error
    return found
