"""Models by name: a file, published weights, or a version in MLflow's registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from panoda.config import TrackingParams, load_params
from panoda.deployment import model as deployed
from panoda.tracking import fetch_model, tracking_uri

if TYPE_CHECKING:
    import torch

    from panoda.deployment.model import Model

REGISTRY = "models:/"


def load(name: str | Path, *, device: str | torch.device = "auto") -> Model:
    """A model that labels images: ``panoda.load(NAME).predict(IMAGE)``.

    Args:
        name: A ``model.safetensors``; a file exported from one (which runs on the CPU); published weights that
            ``panoda weights get`` fetched, such as ``segformer-b1-cityscapes``; or a registered model, such as
            ``models:/panoda-city@adapted``, from the MLflow store of ``MLFLOW_TRACKING_URI`` or params.yaml.
        device: auto (a GPU when there is one), cpu, cuda, cuda:N.

    Raises:
        ValueError: no such model, or none that can be read.
    """
    return deployed.load(find_model(name), device=device)


def find_model(name: str | Path) -> Path:
    """The file of a model by any name that ``load`` takes; one that is registered far away is fetched.

    Raises:
        ValueError: no such model.
    """
    if not str(name).startswith(REGISTRY):
        return deployed.find_model(name)
    file = Path("params.yaml")
    tracking = load_params(file).tracking if file.is_file() else TrackingParams()
    try:
        return fetch_model(str(name), tracking_uri(tracking.uri))
    except ImportError as error:
        raise ValueError(f"{name}: needs MLflow ({error}); run `pip install 'panoda[pipeline]'`") from error
