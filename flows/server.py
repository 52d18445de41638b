"""Prefect server, worker and MLflow UI on 127.0.0.1; ctrl-C stops all of them.

``python -m flows.server`` (``make server``) also creates the work pool ``local``, the concurrency limit
``gpu`` and the deployments of prefect.yaml. Stages started meanwhile, by hand or by DVC, report there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.devices import GPU_LIMIT
from flows.prefect_server import SERVER_NOTE
from panoda.config import load_params
from panoda.system.files import write_json
from panoda.system.reporting import report
from panoda.tracking import prepare_environment, tracking_uri

POOL = "local"
HOST = "127.0.0.1"
START_SECONDS = 120
STOP_SECONDS = 15


def main(argv: Sequence[str] | None = None) -> None:
    """Start everything, say where it is, wait for ctrl-C or for one of the parts to end."""
    parser = argparse.ArgumentParser(prog="python -m flows.server", description=__doc__)
    parser.add_argument("--port", type=int, default=4200, help="of the Prefect server")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="of the MLflow UI")
    parser.add_argument("--gpus", type=int, default=1, help="stages that may use a GPU at the same time")
    parser.add_argument("--debug", action="store_true", help="full traceback of what fails")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _services(arguments.port, arguments.mlflow_port, arguments.gpus) as parts:
            _watch(parts)
    except KeyboardInterrupt:
        print("stopped")
    except Exception as error:
        report(error, "server", debug=arguments.debug)
        sys.exit(1)


def set_up_limits(api_url: str, gpus: int = 1) -> None:
    """Create the work pool and the concurrency limit for GPU stages on a running server."""
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, gpus)
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            return


@contextmanager
def _services(port: int, mlflow_port: int, gpus: int) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    api_url = f"http://{HOST}:{port}/api"
    # Asked before anything starts: another server would answer on the port, and take our deployments.
    for name, number, option in (
        ("Prefect server", port, "--port"),
        ("MLflow UI", mlflow_port, "--mlflow-port"),
    ):
        _check_free(name, number, option)
    prepare_environment()
    environment = {**os.environ, "PREFECT_API_URL": api_url, "PREFECT_LOGGING_LEVEL": "INFO"}
    prefect = [sys.executable, "-m", "prefect"]
    store = tracking_uri(load_params().tracking.uri)
    parts: dict[str, subprocess.Popen[bytes]] = {}
    own_note = {"api_url": api_url, "pid": os.getpid()}
    try:
        parts["MLflow UI"] = _start(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", HOST]
            + ["--port", str(mlflow_port), "--workers", "1"],
            environment,
        )
        command = [*prefect, "server", "start", "--host", HOST, "--port", str(port)]
        parts["Prefect server"] = _start(command, environment)
        _wait(f"{api_url}/health", parts, "Prefect server")
        set_up_limits(api_url, gpus)
        subprocess.run([*prefect, "--no-prompt", "deploy", "--all"], env=environment, check=True)
        parts["Prefect worker"] = _start([*prefect, "worker", "start", "--pool", POOL], environment)
        _wait(f"http://{HOST}:{mlflow_port}/health", parts, "MLflow UI")
        write_json(SERVER_NOTE, own_note)
        print(
            f"Prefect http://{HOST}:{port}   MLflow http://{HOST}:{mlflow_port}   ctrl-C stops both",
            flush=True,
        )
        yield parts
    finally:
        if SERVER_NOTE.is_file() and json.loads(SERVER_NOTE.read_text(encoding="utf-8")) == own_note:
            SERVER_NOTE.unlink()
        _stop(parts)


def _check_free(name: str, port: int, option: str) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise OSError(
                f"port {port} of {HOST}, for the {name}, is taken, perhaps by another `make server`: stop "
                f"that one, or choose another port with python -m flows.server {option} NUMBER"
            )


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    logs = Path(".prefect")
    logs.mkdir(exist_ok=True)
    with (logs / f"{command[2]}-{command[3]}.log").open("wb") as sink:
        # A session of its own: ctrl-C reaches us alone, and we stop the parts in order.
        return subprocess.Popen(
            command, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )


def _wait(url: str, parts: dict[str, subprocess.Popen[bytes]], name: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        _check(parts)
        try:
            with urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise OSError(f"{name} did not answer at {url} within {START_SECONDS} s; see its log in .prefect/")


def _check(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, process in parts.items():
        if process.poll() is not None:
            raise OSError(
                f"{name} ended with code {process.returncode}; is its port taken? see its log in .prefect/, "
                "or choose other ports (--port, --mlflow-port)"
            )


def _watch(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    while True:
        _check(parts)
        time.sleep(1)


def _stop(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    """Worker first, servers last; the group, because the servers have children."""
    for process in reversed(parts.values()):
        _signal(process, signal.SIGTERM)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
