"""The command line of a flow: ``python -m flows.<stage>``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from prefect import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.job import Job
from flows.temporary_server import temporary_server
from panoda.config import Params, load_params
from panoda.files import explained_error
from panoda.pipeline import get_stage
from panoda.tracking import preload
from panoda.training.preemption import Preempted, no_more_sigterm, sigterm_ends

SERVER_NOTE = Path(".prefect/server.json")


def main(flow: Flow[..., Any], argv: list[str] | None = None) -> None:
    """Parse the command line and run the flow.

    It exits with 1 when it fails, 2 when the request is wrong, 75 when it was asked to end and saved
    (``panoda.training.preemption``) and 130 when it was interrupted.
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
        _fail(error, arguments.debug, 2)
    if argv is None:
        no_more_sigterm()  # after the block below: Python takes seconds to end, and the exit code is known
    try:
        with sigterm_ends(), _server(stage.module):
            metrics = flow(**keywords)
            no_more_sigterm()
    except (ValueError, OSError) as error:
        _fail(error, arguments.debug, 1)
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


@contextmanager
def _server(module: str) -> Iterator[None]:
    """The server of ``make server`` when it answers, else a temporary one; torch loads meanwhile."""
    if PREFECT_API_URL.value():
        yield
    elif url := running_server():
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    else:
        # The server's process takes seconds to start; ours would only wait for it.
        loading = threading.Thread(target=_prefetch, args=(module,), daemon=True)
        loading.start()
        with temporary_server():
            # Not side by side with the flow: of packages that two threads import, one may see a half.
            loading.join()
            yield


def _prefetch(module: str) -> None:
    try:
        importlib.import_module(module)
        preload()
    except Exception:  # the same import in the flow reports it
        return


def running_server(note: Path = SERVER_NOTE) -> str | None:
    """API address of the server that ``make server`` started in this project, if it answers."""
    try:
        url = str(json.loads(note.read_text(encoding="utf-8"))["api_url"])
        with urlopen(f"{url}/health", timeout=2) as answer:
            return url if answer.status == 200 else None
    except (OSError, URLError, ValueError, KeyError):
        return None


def _fail(error: Exception, debug: bool, code: int) -> None:
    if debug:
        traceback.print_exception(error)
    else:
        print(f"error: {explained_error(error)}\n(--debug shows where)", file=sys.stderr)
    sys.exit(code)


def _summary(label: str, metrics: dict[str, float]) -> None:
    shown = {k: v for k, v in metrics.items() if k.count("/") <= 1}
    text = ", ".join(f"{k} {v:.4g}" for k, v in list(shown.items())[:8])
    print(f"{label}: {text}" if text else f"{label}: done")
