"""panoda: from labelled pinhole images to segmentation of unlabelled 360-degree panoramas.

``load`` a model and predict, ``create_model`` to build one, ``open_split`` to read prepared data,
``get_label_space`` for class names and colours. Nothing heavy is imported before one of them is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panoda.data.loading.prepared import open_split as open_split
    from panoda.labels import LabelSpace as LabelSpace
    from panoda.labels import get_label_space as get_label_space
    from panoda.models import create_model as create_model
    from panoda.pipeline.models import load as load

__version__ = "0.1.0"
__all__ = ["LabelSpace", "create_model", "get_label_space", "load", "open_split"]

_HOMES = {
    "LabelSpace": "panoda.labels",
    "create_model": "panoda.models",
    "get_label_space": "panoda.labels",
    "load": "panoda.pipeline.models",
    "open_split": "panoda.data.loading.prepared",
}


def __getattr__(name: str) -> Any:
    """A public name, imported from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'panoda' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
