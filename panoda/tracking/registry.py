"""Registered models: logging one in MLflow's own format, fetching the file of one."""

from __future__ import annotations

import base64
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoda.tracking.store import SQLITE, TrackingError, connect, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "adapted"
BATCH_METRICS = 1000
MODEL_FILE = "model.safetensors"
STORE_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow writes it, too, when a program sets the store."""
MAX_MEGABYTES = 50
"""Largest file of one image in 10^6 bytes that a served model takes, and 20 times as many values of an array."""
PACKAGE = Path(__file__).resolve().parents[1]
REQUIREMENTS = (
    *("mlflow", "torch", "torchvision", "timm", "numpy", "pandas", "pyarrow", "pillow", "pydantic", "pyyaml"),
    *("rich", "safetensors", "huggingface-hub", "matplotlib", "scikit-image"),
)
"""Packages that a logged model needs; panoda itself travels as code, because no registry has it."""


def log_and_register(client: MlflowClient, uri: str, run_id: str, name: str, file: Path) -> str:
    """Log a checkpoint as an MLflow model of a run and make it the newest version of ``name``, alias ``adapted``.

    ``uri`` is the client's store, which MLflow's model functions take from a global setting.

    Returns:
        The version.
    """
    import mlflow
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema
    from PIL import Image

    columns: list[Any] = [ColSpec(DataType.string, name) for name in ("label_png", "taken_for")]
    columns.append(ColSpec(Map(DataType.double), "shares"))
    grey = io.BytesIO()
    Image.new("RGB", (128, 64), (128, 128, 128)).save(grey, format="JPEG")
    with _global_store(uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would infer the signature from type hints
        logged = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            name="model",
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(file)},
            code_paths=[str(PACKAGE)],
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS],
            signature=ModelSignature(
                Schema([ColSpec(AnyType(), "image")]),
                Schema(columns),
                ParamSchema([ParamSpec("projection", DataType.string, "auto")]),
            ),
            input_example=pd.DataFrame({"image": [base64.b64encode(grey.getvalue()).decode()]}),
            model_config={"max_megabytes": MAX_MEGABYTES},
        )
        with suppress(MlflowException):  # it is there
            client.create_registered_model(
                name, description="Models adapted to panoramas; panoda.load reads them."
            )
        made = client.create_model_version(name, logged.model_uri, run_id=run_id, model_id=logged.model_id)
    _link_metrics(client, run_id, logged.model_id)
    client.set_registered_model_alias(name, ALIAS, made.version)
    return str(made.version)


def _link_metrics(
    client: MlflowClient, run_id: str, model_id: str, datasets: Mapping[str, str] | None = None
) -> None:
    """Show the run's last value of each metric, except the machine's, as the model's, too.

    Args:
        datasets: Digests by name. With them only metrics of one of these sets (``miou/target_test``,
            ``iou/target_test/road``), linked to it.
    """
    from mlflow.entities import Metric

    found = []
    for key in client.get_run(run_id).data.metrics:
        about: dict[str, Any] = {}
        if datasets is not None:
            name = (*key.split("/"), "")[1]
            if name not in datasets:
                continue
            about = {"dataset_name": name, "dataset_digest": datasets[name]}
        if not key.startswith("system/"):
            last = client.get_metric_history(run_id, key)[-1]
            place = (key, last.value, last.timestamp, last.step)
            found.append(Metric(*place, model_id=model_id, run_id=run_id, **about))
    for start in range(0, len(found), BATCH_METRICS):
        client.log_batch(run_id, metrics=found[start : start + BATCH_METRICS])


def link_evaluation(
    client: MlflowClient, run_id: str, makers: Iterable[str], datasets: Mapping[str, str]
) -> None:
    """Show what an evaluation says of the last model as values of that logged model on these data sets.

    ``makers`` are the runs that made the evaluated models; the one of the adapted model has logged it.
    """
    for maker in makers:
        outputs = client.get_run(maker).outputs
        for model in outputs.model_outputs if outputs else []:
            _link_metrics(client, run_id, model.model_id, datasets)


@contextmanager
def _global_store(uri: str) -> Iterator[None]:
    """The store of MLflow's functions for models, which take no client; it stays as it was for others."""
    import mlflow

    before, compiles = os.environ.get(STORE_VARIABLE), sys.dont_write_bytecode
    mlflow.set_tracking_uri(uri)
    sys.dont_write_bytecode = (
        True  # it runs a model's code where it lies, and would leave what it compiled there
    )
    try:
        yield
    finally:
        sys.dont_write_bytecode = compiles
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ[STORE_VARIABLE] = before


def fetch_model(uri: str, store: str) -> Path:
    """The model.safetensors of a registered model, in place where the store's files can be read here.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        store: MLflow's tracking URI.

    Raises:
        TrackingError: the store cannot be used, or has no such model.
    """
    file = Path(store.removeprefix(SQLITE))
    if store.startswith(SQLITE) and not file.is_file():
        raise TrackingError(
            f"{uri}: there is no MLflow store {file}; run in the project's folder, or set MLFLOW_TRACKING_URI"
        )
    client = connect(store)
    import mlflow

    try:
        with _global_store(store):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except Exception as error:  # every store and transport has its own error types
        known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
        raise TrackingError(
            f"{uri}: not in {store} ({first_line(error)}); registered are: {known}"
        ) from error
    found = sorted(folder.rglob(MODEL_FILE))
    if not found:
        raise TrackingError(f"{uri}: no {MODEL_FILE} in it; was it registered by another program?")
    return found[0]
