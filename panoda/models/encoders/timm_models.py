"""Networks from timm by name."""

from __future__ import annotations

import inspect
from typing import Any

import timm
import torch
from torch import nn


def build(name: str, *, pretrained: bool = False, **wanted: Any) -> nn.Module:
    """The network ``name`` without a classifier.

    Args:
        name: A model of timm, optionally with a tag (``vit_base_patch16_224.mae``).
        pretrained: With timm's published weights, from its cache or downloaded; else random ones.
        wanted: Keywords, of which it takes those that it knows.

    Raises:
        ValueError: timm has no such model or tag.
    """
    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        near = timm.list_models(f"{bare[:6]}*")[:6]
        known = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{known}")
    try:
        with torch.device("meta"):  # costs no memory; only its class is asked
            sketch = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{bare}.*")) or "none"
        raise ValueError(f"timm cannot build {name!r}: {error}; tags of {bare}: {tags}") from error
    accepted = inspect.signature(type(sketch).__init__).parameters
    arguments = {key: value for key, value in wanted.items() if key in accepted}
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)


def normalisation(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, in 0..1 of the channel range, that the network's published weights expect."""
    cfg: Any = network.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])
