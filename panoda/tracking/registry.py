"""Registered models: fetching the file of one."""

from __future__ import annotations

from pathlib import Path

from panoda.tracking.store import TrackingError, connect, first_line

MODEL_FILE = "model.safetensors"


def fetch_model(uri: str, store: str) -> Path:
    """The model.safetensors of a registered model, in place where the store's files can be read here.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        store: MLflow's tracking URI.

    Raises:
        TrackingError: the store cannot be used, or has no such model.
    """
    client = connect(store)
    import mlflow

    mlflow.set_tracking_uri(store)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, registry_uri=store))
    except Exception as error:  # every store and transport has its own error types
        known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
        raise TrackingError(
            f"{uri}: not in {store} ({first_line(error)}); registered are: {known}"
        ) from error
    found = sorted(folder.rglob(MODEL_FILE))
    if not found:
        raise TrackingError(f"{uri}: no {MODEL_FILE} in it; was it registered by another program?")
    return found[0]
