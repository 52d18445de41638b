"""The command ``panoda``: parameters, scenarios, prediction, promotion, the result table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from panoda.cli.adapt import adapt_command
from panoda.cli.annotate import annotate
from panoda.cli.bench import bench_command
from panoda.cli.classify import classify
from panoda.cli.data import data
from panoda.cli.models import export_command, models_command
from panoda.cli.predict import predict_command
from panoda.cli.rank import rank_command
from panoda.cli.view import view_command
from panoda.cli.weights import weights
from panoda.config import load_params, params_model, sections_in
from panoda.config.scenarios import load_scenario, open_scenario, scenario_files
from panoda.data.formats.declaration import DOWNLOADS
from panoda.pipeline.runs import RECORD, clean_state
from panoda.pipeline.table import STAGES
from panoda.system.files import expand_user, staged_file
from panoda.system.machine import choose_waiting, loopback_past_proxies
from panoda.system.reporting import paragraph, report

PARAMS = Path("params.yaml")
WRITTEN = Path(".panoda/params.yaml")
"""What the command scenario wrote last."""
MODELS = {"source_only": "source-only", "warmup": "warm-up", "round1": "adapted"}
SETS = {"source_val": "source val", "target_test": "target test"}


class _Commands(TyperGroup):
    """Commands whose arguments may begin with ``~``, also after ``--option=``, where no shell replaces it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace ``~`` by the home folder."""
        return super().parse_args(ctx, [expand_user(argument) for argument in args])


app = typer.Typer(
    cls=_Commands,
    help="From labelled pinhole images to a model adapted to 360-degree panoramas. (--debug anywhere: full "
    "tracebacks.)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")
app.add_typer(weights, name="weights")
app.add_typer(classify, name="classify")
app.add_typer(annotate, name="annotate")
app.command("adapt")(adapt_command)
app.command("export")(export_command)
app.command("models")(models_command)
app.command("bench")(bench_command)
app.command("predict")(predict_command)
app.command("rank")(rank_command)
app.command("view")(view_command)


def main() -> None:
    """Entry point; errors are one paragraph, not a traceback."""
    choose_waiting()  # read by OpenMP when torch is imported
    loopback_past_proxies()
    debug = "--debug" in sys.argv
    try:
        app(args=[word for word in sys.argv[1:] if word != "--debug"])
    except Exception as error:
        if isinstance(error, ValueError | OSError) and not debug:
            print(f"error: {paragraph(error)}", file=sys.stderr)
        else:
            report(error, "panoda", debug=debug)
        sys.exit(1)


# --- parameters --------------------------------------------------------------------------------------


@app.command()
def params(
    section: Annotated[str, typer.Argument(help="Show only this part, such as adapt.mpa.")] = "",
) -> None:
    """Print every parameter with its type, default and meaning."""
    shown = 0
    for path, kind, default, text in documentation(params_model()):
        if not section or path == section or path.startswith((f"{section}.", f"{section}[")):
            typer.echo(f"{path}  ({kind}{default})\n    {text}")
            shown += 1
    if not shown:
        raise ValueError(f"no parameter {section!r}; run `panoda params` for the list")


def documentation(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Dotted path, type, default and docstring of every field below ``model``."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        nested = list(sections_in(info.annotation))
        default = info.get_default(call_default_factory=True)
        plain = default is not PydanticUndefined and not isinstance(default, BaseModel)
        kind = " or ".join(m.__name__ for m in nested) if nested else _type_name(info.annotation)
        # One paragraph per parameter, however its docstring is wrapped.
        text = " ".join((info.description or "").split())
        yield path, kind, f", default {default!r}" if plain else "", text
        for child in nested:
            inner = path if len(nested) == 1 else f"{path}[{_kind(child)}]"
            inner += ".<name>" if get_origin(info.annotation) is dict else ""
            yield from documentation(child, f"{inner}.")


def _kind(model: type[BaseModel]) -> str:
    tag = "kind" if "kind" in model.model_fields else "method"
    return str(get_args(model.model_fields[tag].annotation)[0])


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(a) for a in get_args(annotation))
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if annotation is type(None):
        return "null"
    if origin is not None and not hasattr(annotation, "__name__"):
        return " | ".join(repr(a) for a in get_args(annotation))
    if origin is not None and origin.__name__ == "Literal":
        return " | ".join(str(a) for a in get_args(annotation))
    return str(annotation.__name__ if origin is None else annotation).replace("typing.", "")


@app.command()
def scenario(
    name: Annotated[
        str, typer.Argument(help="Name of a file in scenarios/, or the path of a .yaml file of your own.")
    ],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="SECTION.NAME=VALUE to write in place of the scenario's own; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an edited params.yaml.")] = False,
) -> None:
    """Switch to a scenario: write the whole params.yaml, with what the scenario extends and the defaults."""
    chosen = open_scenario(name)
    text = chosen.text(change or ())
    if PARAMS.exists() and not force and _edited():
        raise ValueError(
            f"{PARAMS} differs from every scenario, so replacing it would lose your changes; "
            "save it as scenarios/<name>.yaml first, or use --force"
        )
    for path in (PARAMS, WRITTEN):
        path.parent.mkdir(exist_ok=True)
        with staged_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    for domain in chosen.params(change or ()).data.domains.values():
        folder = Path(getattr(domain.dataset, "path", ""))
        if folder.is_relative_to(DOWNLOADS) and not folder.exists():
            folder.mkdir(parents=True)  # where archives that come by hand belong is seen at once
            typer.echo(f"made {folder}: `dvc repro` fetches the data there or says how to get them")
    typer.echo(f"{PARAMS} is now scenario {name}; `dvc repro` runs it")


def _edited() -> bool:
    """params.yaml is neither what this command wrote last nor any scenario."""
    if WRITTEN.is_file() and WRITTEN.read_bytes() == PARAMS.read_bytes():
        return False
    try:
        current = load_params(PARAMS)
    except ValueError:
        return True
    return all(current != load_scenario(name) for name in scenario_files())


# --- results -------------------------------------------------------------------------------------------


@app.command()
def summary() -> None:
    """Print the result table, and where the report and the MLflow UI are."""
    path = Path(STAGES["evaluate"].out) / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{path}: no results yet; run `dvc repro` first")
    metrics = json.loads(path.read_text(encoding="utf-8"))
    # Val of further sources after the two that every run has.
    names = list(dict.fromkeys([*SETS, *(name for sets in metrics.values() for name in sets)]))
    table = Table("model", *(f"mIoU {SETS.get(name, name.replace('_', ' '))}, %" for name in names))
    # In training order; rounds after the first are named round2, round3, ...
    order = [*MODELS, *sorted(set(metrics) - set(MODELS), key=lambda name: (len(name), name))]
    about = json.loads(path.with_name("models.json").read_text(encoding="utf-8"))
    copies = {name for name, one in about.items() if one["same_weights_as"]}
    for model, sets in ((name, metrics[name]) for name in order if name in metrics and name not in copies):
        table.add_row(_model_title(model), *(_percent(sets.get(name, {}).get("miou")) for name in names))
    Console().print(table)
    if copies:
        passed = ", ".join(_model_title(name) for name in order if name in copies)
        typer.echo(f"no steps, so no models of their own: {passed}")
    typer.echo(f"report   {(Path(STAGES['report'].out) / 'index.html').resolve().as_uri()}")
    typer.echo("MLflow   run `make server`, then open http://127.0.0.1:5000")


def _model_title(model: str) -> str:
    return MODELS.get(model, f"adapted, round {model.removeprefix('round')}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


# --- runs ----------------------------------------------------------------------------------------------


@app.command()
def promote(run: Annotated[Path, typer.Argument(help="Folder of a run below runs/.")]) -> None:
    """Make a run by hand the pipeline's result of its stage; the stages after it follow at `dvc repro`."""
    # Imported here: promotion is the only command that needs Prefect, DVC and MLflow.
    try:
        from flows.promote import promote as promote_run
    except ImportError as error:
        raise ValueError(f"promotion needs the pipeline extras ({error}); run `make setup`") from error

    label = promote_run(run)
    typer.echo(
        f"{run} is now the pipeline's {label}; `dvc repro` runs what follows ({RECORD} stays with the run)"
    )


@app.command("clean-state")
def clean_state_command() -> None:
    """Remove what killed stages left for resuming; running stages keep theirs."""
    removed = clean_state()
    typer.echo("\n".join(removed) if removed else "nothing to remove")


if __name__ == "__main__":
    main()
