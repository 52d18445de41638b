"""``MetricLogger`` on MLflow; the only room that imports mlflow.

What goes wrong before a run begins stops the stage with a clear message. Once a stage computes, tracking
must not cost it its result: failures become warnings, and after three in a row tracking stops for the run.
"""

from panoda.tracking.logger import MLflowLogger
from panoda.tracking.registry import fetch_model
from panoda.tracking.run import DatasetRecord, start_run
from panoda.tracking.store import TrackingError, connect, preload, prepare_environment, tracking_uri

__all__ = [
    "DatasetRecord",
    "MLflowLogger",
    "TrackingError",
    "connect",
    "fetch_model",
    "preload",
    "prepare_environment",
    "start_run",
    "tracking_uri",
]
