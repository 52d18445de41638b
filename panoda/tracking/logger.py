"""``MetricLogger`` on one MLflow run; what goes wrong becomes a warning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from panoda.pipeline.table import flatten
from panoda.system.context import MetricLogger
from panoda.tracking.registry import BATCH_METRICS, link_evaluation, log_and_register
from panoda.tracking.store import first_line, safe_key, write_params

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
log = logging.getLogger(__name__)

GIVE_UP_AFTER = 3
FLUSH_SECONDS = 5.0


class MLflowLogger(MetricLogger):
    """Logs to one MLflow run: metrics batched, pictures, figures, files, the registered model."""

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
        safe = {safe_key(key): value for key, value in metrics.items()}
        fresh = {key: value for key, value in safe.items() if step > self._logged.get(key, -1)}
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
        pixels = np.ascontiguousarray(image)
        self._try(key, lambda: self._client.log_image(self.run_id, pixels, key=key, step=step))

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a matplotlib figure under a file name."""
        self._try(name, lambda: self._client.log_figure(self.run_id, figure, f"figures/{name}"))

    def log_artifact(self, path: Path) -> None:
        """Log a file."""
        self._try(str(path), lambda: self._client.log_artifact(self.run_id, str(path)))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters of other stages, nested as in params.yaml."""
        self._try("parameters", partial(write_params, self._client, self.run_id, flatten(params)))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; None is left out."""
        for key, value in tags.items():
            if value is not None:
                self._try(f"tag {key}", partial(self._client.set_tag, self.run_id, key, str(value)))

    def register_model(self, name: str, file: Path) -> str | None:
        """Log a ``model.safetensors`` in MLflow's format: the newest version of ``name``, alias ``adapted``.

        Returns:
            The version, or None when tracking failed.
        """
        self.flush()
        uri = self._client.tracking_uri
        return self._try(
            f"registered model {name}",
            lambda: log_and_register(self._client, uri, self.run_id, name, file),
        )

    def link_evaluation(self, makers: Iterable[str], datasets: Mapping[str, str]) -> None:
        """Link this run's metrics to the logged model that one of these runs made, and to data sets."""
        self.flush()
        self._try("links to the model", lambda: link_evaluation(self._client, self.run_id, makers, datasets))

    def end(self, status: str) -> None:
        """Send what waits and close the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self._try("end of the run", lambda: self._client.set_terminated(self.run_id, status))

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
            self._warn(f"MLflow: {what} was not logged ({first_line(error)}){tail}")
            return None
        self._failures = 0
        return result
