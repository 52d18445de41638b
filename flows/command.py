"""The command line of a flow: ``python -m flows.<stage>``."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

from prefect import Flow

from flows.job import Job
from flows.prefect_server import server
from panoda.config import Params, load_params
from panoda.engine.preemption import Preempted, no_more_sigterm, sigterm_ends
from panoda.pipeline.table import get_stage
from panoda.system.reporting import report


def main(flow: Flow[..., Any], argv: list[str] | None = None) -> None:
    """Parse the command line and run the flow.

    It exits with 1 when it fails, 2 when the request is wrong, 75 when it was asked to end and saved
    (``panoda.engine.preemption``) and 130 when it was interrupted.
    """
    stage = get_stage(flow.name.replace("-", "_"))
    arguments = _parser(stage.name, per_role=stage.per_role).parse_args(argv)
    _quiet(debug=arguments.debug)
    try:
        job = _job(arguments)
        params = load_params(Path(job.params), job.overrides)
        stage.check_role(params, getattr(arguments, "role", None))
        keywords = _keywords(flow, params, job, getattr(arguments, "role", None))
    except (ValueError, OSError) as error:
        _fail(error, stage.name, arguments.debug, 2)
    if argv is None:
        no_more_sigterm()  # after the block below: Python takes seconds to end, and the exit code is known
    try:
        with sigterm_ends(), server(stage.module):
            metrics = flow(**keywords)
            no_more_sigterm()
    except Exception as error:  # of whatever class: a traceback tells most users nothing
        _fail(error, stage.name, arguments.debug, 1)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("interrupted; the next run with the same parameters, inputs and code resumes", file=sys.stderr)
        sys.exit(130)
    _summary(stage.label(getattr(arguments, "role", None)), metrics)


def _parser(stage: str, *, per_role: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m flows.{stage}",
        description=f"Run stage {stage}. The result goes to a folder below runs/, never over a DVC output.",
    )
    if per_role:
        parser.add_argument("--role", required=True, help="which domain of section data: source, target, ...")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a parameter (repeatable)",
    )
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="parameter file")
    parser.add_argument("--out", metavar="DIR", help="result folder (default: runs/<stage>-<time>-<id>)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="take an input from elsewhere, such as checkpoint=runs/pretrain-... (repeatable)",
    )
    parser.add_argument("--pipeline", action="store_true", help="write the DVC output; for dvc.yaml")
    parser.add_argument("--debug", action="store_true", help="full tracebacks and Prefect's log")
    return parser


def _job(arguments: argparse.Namespace) -> Job:
    inputs = {}
    for text in arguments.input:
        name, sep, path = text.partition("=")
        if not sep or not path:
            raise ValueError(f"--input {text!r}: expected NAME=PATH")
        inputs[name] = path
    job = Job(
        pipeline=arguments.pipeline,
        params=arguments.params,
        overrides=arguments.set,
        inputs=inputs,
        out=arguments.out,
    )
    if job.pipeline and (job.overrides or job.inputs or job.out or job.params != "params.yaml"):
        raise ValueError(
            "--pipeline goes with no --set, --params, --input or --out: DVC's outputs follow params.yaml"
        )
    return job


def _keywords(flow: Flow[..., Any], params: Params, job: Job, role: str | None) -> dict[str, Any]:
    """The flow's arguments: every one that is a section of params.yaml, the job, the role."""
    keywords: dict[str, Any] = {}
    for name in inspect.signature(flow.fn).parameters:
        if name in type(params).model_fields:
            keywords[name] = getattr(params, name)
    keywords["job"] = job
    if role is not None:
        keywords["role"] = role
    return keywords


def _quiet(*, debug: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if debug:
        return
    # What the user needs is printed here; the Prefect API keeps the whole story with tracebacks.
    for name in ("prefect", "prefect.flow_runs"):
        for handler in logging.getLogger(name).handlers:
            if type(handler).__name__ == "PrefectConsoleHandler":
                handler.setLevel(logging.CRITICAL)
    logging.getLogger("prefect").propagate = False


def _fail(error: Exception, stage: str, debug: bool, code: int) -> NoReturn:
    report(error, stage, debug=debug)
    sys.exit(code)


def _summary(label: str, metrics: dict[str, float]) -> None:
    shown = {k: v for k, v in metrics.items() if k.count("/") <= 1}
    text = ", ".join(f"{k} {v:.4g}" for k, v in list(shown.items())[:8])
    print(f"{label}: {text}" if text else f"{label}: done")
