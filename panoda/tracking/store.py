"""The MLflow store: where it is, and a client for it."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoda.system.locks import file_lock, user_lock_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
BATCH_PARAMS = 100
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackingError(ValueError):
    """The tracking store cannot be used; the message says where it is and what to do."""


def prepare_environment() -> None:
    """Switch MLflow's telemetry and long retries off, unless the user's environment says otherwise."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Alembic reports every migration step of a fresh store; of errors, which are raised as well, MLflow
    # prints two hundred lines.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for name in ("mlflow.system_metrics.system_metrics_monitor", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)


def preload() -> None:
    """Import mlflow (seconds), for a thread that has nothing else to do."""
    prepare_environment()
    import mlflow  # noqa: F401


def tracking_uri(uri: str, root: Path = Path()) -> str:
    """``MLFLOW_TRACKING_URI`` when set, else ``uri``; a relative sqlite path (or ``~``) becomes absolute.

    Example:
        >>> tracking_uri("sqlite:///mlflow.db", Path("/project"))
        'sqlite:////project/mlflow.db'
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or uri
    if uri.startswith(SQLITE) and not uri.removeprefix(SQLITE).startswith(("/", ":memory:")):
        return SQLITE + str((root / Path(uri.removeprefix(SQLITE)).expanduser()).resolve())
    return uri


def connect(uri: str) -> MlflowClient:
    """A client for a store that answers.

    Raises:
        TrackingError: it cannot be reached, read or written.
    """
    prepare_environment()
    from mlflow import MlflowClient

    try:
        _make_store(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        with _without_retries():
            client.search_experiments(max_results=1)
    except Exception as error:  # every store and transport has its own error types
        raise TrackingError(
            f"MLflow store {uri} cannot be used ({first_line(error)}); start its server, check the path "
            "and its permissions, or set tracking.uri in params.yaml or MLFLOW_TRACKING_URI"
        ) from error
    return client


@contextmanager
def _without_retries() -> Iterator[None]:
    """A server that does not answer the first question is not there: waiting thrice is for a busy one."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ[name]
    if before == _QUIET[name]:  # else the user wants it so
        os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ[name] = before


def _make_store(uri: str) -> None:
    """Make a new SQLite store aside: one whose maker is killed between its tables cannot be used any more."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.is_absolute() or path.exists() or not path.parent.is_dir():
        return
    from mlflow import MlflowClient

    with file_lock(user_lock_path(f"store {path}"), what=f"the new store {path}", say=log.warning):
        if path.exists():  # another stage was faster
            return
        folder = path.with_name(f".{path.name}.new")
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        folder.mkdir()
        new = f"{SQLITE}{folder / path.name}"
        MlflowClient(tracking_uri=new, registry_uri=new).search_experiments(max_results=1)
        os.replace(folder / path.name, path)
        shutil.rmtree(folder)


def safe_key(key: str) -> str:
    """A key of a metric or parameter that MLflow takes: class and group names may hold anything.

    Example:
        >>> safe_key("iou/val/car (parked)"), safe_key("iou/val/../a//b")
        ('iou/val/car _parked_', 'iou/val/__/a/_/b')
    """
    parts = re.sub(r"[^/\w.\- ]", "_", key).split("/")
    return "/".join("_" * max(len(part), 1) if not part.strip(".") else part for part in parts)


def write_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log flat parameters: texts as they are, other values as JSON."""
    from mlflow.entities import Param

    pairs = [
        Param(safe_key(key), value if isinstance(value, str) else json.dumps(value))
        for key, value in params.items()
    ]
    for start in range(0, len(pairs), BATCH_PARAMS):
        client.log_batch(run_id, params=pairs[start : start + BATCH_PARAMS])


def folder_name(experiment: str) -> str:
    """The folder of an experiment's files: its name without what would lead elsewhere.

    Example:
        >>> folder_name("city"), folder_name("../mine"), folder_name("day: 1/2")
        ('city', '_.._mine', 'day_ 1_2')
    """
    name = re.sub(r'[/\\:*?"<>|]', "_", experiment)
    return f"_{name}" if name.startswith(".") else name


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    lines = str(error).strip().splitlines()
    # Of a database's errors the line that the driver wrote: "(sqlite3.OperationalError) ...".
    lines = [line for line in lines if re.match(r"\([\w.]+Error\) ", line)] or lines
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
