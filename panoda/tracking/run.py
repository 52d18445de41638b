"""Opening a run, or the one of a killed stage again, and closing it as what it came to."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoda.tracking.logger import MLflowLogger
from panoda.tracking.store import SQLITE, TrackingError, connect, first_line, folder_name, write_params

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

VIEW_PARAMS = ("adapt.method", "adapt.iterations", "adapt.optim.lr", "adapt.class_mix", "pretrain.iterations")
VIEW_METRICS = ("miou/source_val", "source_only/miou/target_test", "miou/target_test")
"""Columns of the saved view."""


@dataclass(frozen=True)
class DatasetRecord:
    """A data set that a stage reads.

    Attributes:
        digest: At most 36 characters.
    """

    name: str
    digest: str
    path: str


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
        run_id: Run of a killed stage to go on with, if it still exists.
        start: Without ``run_id``: tag ``start`` of a run that a stage may have opened right before it died.
        root: Project root; artifacts of a sqlite store lie in its ``mlruns``.

    Raises:
        TrackingError: the store cannot be used.
    """
    client = connect(uri)
    all_tags = {"stage": stage, **{k: v for k, v in tags.items() if v is not None}}
    try:
        resumed = _resume(client, experiment, run_id, start)
        opened = resumed or _create(client, uri, experiment, name, all_tags, root)
        _describe(client, opened, params, datasets)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow store {uri}: the run could not be opened ({first_line(error)}); "
            "check its permissions and the space on its disk"
        ) from error
    logger = MLflowLogger(client, opened, warn=warn)
    if resumed:
        logger.skip_logged()
    monitor = _watch_machine(opened, uri, resumed=bool(resumed), warn=warn)
    status = "FAILED"
    try:
        yield logger
        status = "FINISHED"
    except Exception as error:
        logger.set_tags({"error": first_line(error)[:4000]})
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        if monitor is not None:
            monitor.finish()
        logger.end(status)


def _watch_machine(run_id: str, uri: str, *, resumed: bool, warn: Callable[[str], None]) -> Any:
    """MLflow's system metrics (CPU, memory, disk, network, GPU; every 10 seconds) in a thread; None without psutil."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=resumed, tracking_uri=uri)
        monitor.start()
    except Exception as error:  # tracking must not cost a stage its result
        warn(f"MLflow: no system metrics ({first_line(error)}); going on without them")
        return None
    return monitor


def _resume(client: MlflowClient, experiment: str, run_id: str | None, start: str | None) -> str | None:
    """The run of that number, else the one with that tag ``start``, open again; None where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment) if start and not run_id else None
    if found is not None:
        tagged = f"tags.start = '{start}'"
        runs = client.search_runs([found.experiment_id], filter_string=tagged, max_results=1)
        run_id = runs[0].info.run_id if runs else None
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


def _saved_view() -> dict[str, str]:
    """The tag behind ``?viewStateShareKey=results``: evaluations alone, and the columns that tell them apart."""
    view = {
        "searchFilter": "tags.stage = 'evaluate'",
        "selectedColumns": [
            *(f"params.`{name}`" for name in VIEW_PARAMS),
            *(f"metrics.`{name}`" for name in VIEW_METRICS),
        ],
    }
    return {"mlflow.sharedViewState.results": json.dumps(view)}


def _create(
    client: MlflowClient, uri: str, experiment: str, name: str, tags: Mapping[str, Any], root: Path
) -> str:
    from mlflow.exceptions import MlflowException

    if client.get_experiment_by_name(experiment) is None:
        # A server picks its own place; a plain sqlite store would take the current folder.
        own = (root / "mlruns" / folder_name(experiment)).resolve().as_uri()
        place = own if uri.startswith(SQLITE) else None
        try:
            client.create_experiment(experiment, artifact_location=place, tags=_saved_view())
        except MlflowException:
            if client.get_experiment_by_name(experiment) is None:  # else another stage was faster
                raise
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {experiment!r} is deleted; restore it (mlflow experiments restore) or set "
            "tracking.experiment to another name"
        )
    made = client.create_run(found.experiment_id, run_name=name, tags={k: str(v) for k, v in tags.items()})
    return str(made.info.run_id)


def _describe(
    client: MlflowClient, run_id: str, params: Mapping[str, Any], datasets: Sequence[DatasetRecord]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    write_params(client, run_id, params)
    sets = [Dataset(d.name, d.digest, "local", json.dumps({"uri": d.path})) for d in datasets]
    tags = [InputTag("mlflow.data.context", "input")]
    if sets:
        client.log_inputs(run_id, datasets=[DatasetInput(one, tags=tags) for one in sets])
