"""``MetricLogger`` on MLflow; the only file that imports mlflow.

What goes wrong before a run begins stops the stage with a clear message. Once a stage computes, tracking
must not cost it its result: failures become warnings, and after three in a row tracking stops for the run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from panoda.locks import file_lock, user_lock_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
GIVE_UP_AFTER = 3
FLUSH_SECONDS = 5.0
BATCH_METRICS = 1000
BATCH_PARAMS = 100
ALIAS = "adapted"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackingError(ValueError):
    """The tracking store cannot be used; the message says where it is and what to do."""


@dataclass(frozen=True)
class DatasetRecord:
    """A data set that a stage reads.

    Attributes:
        name: Input name.
        digest: At most 36 characters.
        path: Where it lies.
    """

    name: str
    digest: str
    path: str


def prepare_environment() -> None:
    """Switch MLflow's telemetry and long retries off, unless the user's environment says otherwise."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Alembic reports every migration step of a fresh store; of errors, which are raised as well, MLflow
    # prints two hundred lines.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def preload() -> None:
    """Import mlflow (seconds), for a thread that has nothing else to do."""
    prepare_environment()
    import mlflow  # noqa: F401


def tracking_uri(uri: str, root: Path = Path()) -> str:
    """``MLFLOW_TRACKING_URI`` when set, else ``uri``; a relative sqlite path becomes absolute.

    Example:
        >>> tracking_uri("sqlite:///mlflow.db", Path("/project"))
        'sqlite:////project/mlflow.db'
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or uri
    if uri.startswith(SQLITE) and not uri.removeprefix(SQLITE).startswith(("/", ":memory:")):
        return SQLITE + str((root / uri.removeprefix(SQLITE)).resolve())
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
        client.search_experiments(max_results=1)
    except Exception as error:  # every store and transport has its own error types
        raise TrackingError(
            f"MLflow store {uri} cannot be used ({_first_line(error)}); start its server, check the path "
            "and its permissions, or set tracking.uri in params.yaml or MLFLOW_TRACKING_URI"
        ) from error
    return client


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


class MLflowLogger:
    """Logs to one MLflow run: metrics batched, pictures, figures, files, the registered model.

    Attributes:
        run_id: The run.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, *, warn: Callable[[str], None] = log.warning
    ) -> None:
        """Log to ``run_id``; ``warn`` receives what went wrong."""
        self.run_id = run_id
        self._client = client
        self._warn = warn
        self._failures = 0
        self._logged: dict[str, int] = {}
        self._metrics: list[Any] = []
        self._flushed = time.monotonic()

    def skip_logged(self) -> None:
        """Skip from now on the steps that the run has already: a resumed stage takes some of them again."""

        def read() -> dict[str, int]:
            keys = self._client.get_run(self.run_id).data.metrics
            histories = {key: self._client.get_metric_history(self.run_id, key) for key in keys}
            return {key: max(point.step for point in points) for key, points in histories.items() if points}

        self._logged = self._try("steps of the killed run", read) or {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log many values of one step; they are sent together, at least every few seconds."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        fresh = {key: value for key, value in metrics.items() if step > self._logged.get(key, -1)}
        self._metrics += [Metric(key, float(value), now, int(step)) for key, value in fresh.items()]
        if len(self._metrics) >= BATCH_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        self._flushed = time.monotonic()
        waiting, self._metrics = self._metrics, []
        for start in range(0, len(waiting), BATCH_METRICS):
            part = waiting[start : start + BATCH_METRICS]
            self._try("metrics", partial(self._client.log_batch, self.run_id, metrics=part))

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log an (H, W, 3) uint8 RGB picture."""
        self._try(
            key, lambda: self._client.log_image(self.run_id, np.ascontiguousarray(image), key=key, step=step)
        )

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a matplotlib figure under a file name."""
        self._try(name, lambda: self._client.log_figure(self.run_id, figure, f"figures/{name}"))

    def log_artifact(self, path: Path) -> None:
        """Log a file, or a folder with everything in it."""
        if path.is_dir():
            self._try(str(path), lambda: self._client.log_artifacts(self.run_id, str(path), path.name))
        else:
            self._try(str(path), lambda: self._client.log_artifact(self.run_id, str(path)))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; None is left out."""
        for key, value in tags.items():
            if value is not None:
                self._try(f"tag {key}", partial(self._client.set_tag, self.run_id, key, str(value)))

    def register_model(self, name: str) -> str | None:
        """Make the run's ``model.safetensors`` the newest version of a model, with the alias ``adapted``.

        Returns:
            The version, or None when tracking failed.
        """
        return self._try(f"registered model {name}", lambda: register(self._client, self.run_id, name))

    def _try(self, what: str, action: Callable[[], T]) -> T | None:
        if self._failures >= GIVE_UP_AFTER:
            return None
        try:
            result = action()
        except Exception as error:  # tracking must not lose a training result, whatever is wrong with it
            self._failures += 1
            tail = (
                "; tracking stops for this run, the result's own files have everything"
                if self._failures >= GIVE_UP_AFTER
                else "; going on without it"
            )
            self._warn(f"MLflow: {what} was not logged ({_first_line(error)}){tail}")
            return None
        self._failures = 0
        return result


@contextmanager
def start_run(
    uri: str,
    experiment: str,
    *,
    stage: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    datasets: Sequence[DatasetRecord] = (),
    run_id: str | None = None,
    start: str | None = None,
    root: Path = Path(),
    warn: Callable[[str], None] = log.warning,
) -> Iterator[MLflowLogger]:
    """Open a run and close it as finished, failed or killed.

    Args:
        uri: Tracking store, already absolute.
        experiment: Experiment name; created when missing.
        stage: Value of the tag ``stage``.
        name: Run name.
        params: Flat parameters of the stage.
        tags: More tags; None is left out.
        datasets: Data sets the stage reads.
        run_id: Run of a killed stage to go on with, if it still exists.
        start: Without ``run_id``: tag ``start`` of a run that a stage may have opened right before it died.
        root: Project root; artifacts of a sqlite store lie in its ``mlruns``.
        warn: Receives warnings.

    Raises:
        TrackingError: the store cannot be used.
    """
    client = connect(uri)
    all_tags = {"stage": stage, **{k: v for k, v in tags.items() if v is not None}}
    try:
        resumed = _resume(client, run_id or _opened(client, experiment, start))
        opened = resumed or _create(client, uri, experiment, name, all_tags, root)
        _describe(client, opened, params, datasets)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow store {uri}: the run could not be opened ({_first_line(error)}); "
            "check its permissions and the space on its disk"
        ) from error
    logger = MLflowLogger(client, opened, warn=warn)
    if resumed:
        logger.skip_logged()
    status = "FAILED"
    try:
        yield logger
        status = "FINISHED"
    except Exception as error:
        logger.set_tags({"error": _first_line(error)[:4000]})
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        logger.flush()
        logger._try("end of the run", lambda: client.set_terminated(opened, status))


def register(client: MlflowClient, run_id: str, name: str) -> str:
    """Register the run's ``model.safetensors`` as the newest version of ``name``, alias ``adapted``."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(
            name,
            description="Models adapted to panoramas; panoda.models.checkpoint.load_model reads them.",
        )
    source = f"{client.get_run(run_id).info.artifact_uri}/model.safetensors"
    version = client.create_model_version(name, source=source, run_id=run_id)
    client.set_registered_model_alias(name, ALIAS, version.version)
    return str(version.version)


def _opened(client: MlflowClient, experiment: str, start: str | None) -> str | None:
    """The run with that tag ``start``, if there is one."""
    found = client.get_experiment_by_name(experiment) if start else None
    if found is None:
        return None
    runs = client.search_runs([found.experiment_id], filter_string=f"tags.start = '{start}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _resume(client: MlflowClient, run_id: str | None) -> str | None:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return None
        client.update_run(run_id, status="RUNNING")
    except MlflowException:
        return None
    client.set_tag(run_id, "resumed", "true")
    return run_id


def _create(
    client: MlflowClient, uri: str, experiment: str, name: str, tags: Mapping[str, Any], root: Path
) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {experiment!r} is deleted; restore it (mlflow experiments restore) or set "
            "tracking.experiment to another name"
        )
    if found is None:
        # A server picks its own place; a plain sqlite store would take the current folder.
        place = (root / "mlruns" / experiment).resolve().as_uri() if uri.startswith(SQLITE) else None
        try:
            identity = client.create_experiment(experiment, artifact_location=place)
        except MlflowException:  # another stage was faster
            again = client.get_experiment_by_name(experiment)
            if again is None:
                raise
            identity = again.experiment_id
    else:
        identity = found.experiment_id
    return str(
        client.create_run(identity, run_name=name, tags={k: str(v) for k, v in tags.items()}).info.run_id
    )


def _describe(
    client: MlflowClient, run_id: str, params: Mapping[str, Any], datasets: Sequence[DatasetRecord]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    pairs = [
        Param(key, value if isinstance(value, str) else json.dumps(value)) for key, value in params.items()
    ]
    for start in range(0, len(pairs), BATCH_PARAMS):
        client.log_batch(run_id, params=pairs[start : start + BATCH_PARAMS])
    inputs = [
        DatasetInput(
            Dataset(d.name, d.digest, "local", json.dumps({"uri": d.path})),
            tags=[InputTag("mlflow.data.context", "input")],
        )
        for d in datasets
    ]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    # Of a database's errors the line that the driver wrote: "(sqlite3.OperationalError) ...".
    lines = [line for line in lines if re.match(r"\([\w.]+Error\) ", line)] or lines
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
