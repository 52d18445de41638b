"""Parameters that are valid one by one and that no stage could run with: refused before any stage has run.

What a section or two say wrong is found where they are read (``panoda.config``); here is what only data sets
and models know.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from panoda.config import AnyDataset, ConfigError, DeclaredDataset, ModelParams, Params, SslParams
from panoda.config.pairs import augmentations, trained_stages
from panoda.data.formats.declaration import Declaration, read_declaration
from panoda.data.formats.encoding import space_of
from panoda.engine.method import get_method
from panoda.labels import get_label_space, remap_table
from panoda.stages.weights import build_model

Given = tuple[str, tuple[int, int, int, int]]
"""Dotted name of an augmentation, and the shape of what it gives the model at once."""


def check_runnable(params: Params) -> None:
    """Refuse parameters with which a stage would fail.

    The model is built and run once without values, at the sizes that it will train with: in a second or so.

    Raises:
        ConfigError: a data set whose labels have no way into the label space, ``model.wrap`` with images that
            are no full circles, or a model that cannot be built or does not take its batches.
    """
    for role, domain in params.data.domains.items():
        space = _native_space(domain.dataset)
        try:
            if space is not None:
                remap_table(space, params.label_space)
        except ValueError as error:
            raise ConfigError(f"data.{role}: {error}") from error
    if params.model.wrap:
        _check_circles(params)
    _check_ssl(params)
    _check_model(params.model, get_label_space(params.label_space).num_classes, list(_batches(params)))


def _native_space(dataset: AnyDataset) -> str | None:
    if not isinstance(dataset, DeclaredDataset):
        return dataset.label_space
    declaration = _declaration(dataset)
    if declaration is None or declaration.labels is None or set(dataset.splits) <= set(dataset.unlabelled):
        return None
    return space_of(declaration.labels, dataset.declaration)


def _full_circle(dataset: AnyDataset) -> bool:
    if not isinstance(dataset, DeclaredDataset):
        return dataset.full_circle
    declaration = _declaration(dataset)
    return declaration is None or declaration.projection == "erp" and declaration.fov_x_deg >= 360


def _declaration(dataset: DeclaredDataset) -> Declaration | None:
    """What is declared; None where the file is missing or wrong: stage download, the only reader, says so."""
    try:
        return read_declaration(dataset.declaration)
    except ValueError:
        return None


def _check_circles(params: Params) -> None:
    """A model that closes its input around the circle must see nothing but full circles."""
    why = "model.wrap closes every image around the circle, but"
    for role, domain in params.data.domains.items():
        if not _full_circle(domain.dataset):
            raise ConfigError(f"{why} the images of data.{role} are no full circles; set wrap: false")
    for name, augment, prepared in augmentations(params):
        widths = {one.width for one in prepared}
        if augment.scale != (1.0, 1.0) or augment.crop_width and widths != {augment.crop_width}:
            raise ConfigError(
                f"{why} {name} cuts or scales them; set crop_width: 0 and scale: [1.0, 1.0], or wrap: false"
            )
    parts = {
        "evaluate.sliding": params.evaluate.sliding,
        "evaluate.views": params.evaluate.views,
        "pseudo_labels.views": params.pseudo_labels.views,
    }
    for name, value in parts.items():
        if value is not None:
            raise ConfigError(f"{why} {name} predicts parts; set it to null, or wrap: false")


def _check_ssl(params: Params) -> None:
    """Run what stage ssl_pretrain would train once, without values."""
    ssl = params.ssl
    if not isinstance(ssl, SslParams):
        return
    model = get_method(ssl.method).model
    assert model is not None
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        try:
            net: Any = model(params.model.encoder, ssl)
            net(
                torch.zeros(1, 3, ssl.crop_height, ssl.crop_width), mask_ratio=getattr(ssl, "mask_ratio", 0.5)
            )
        except ValueError as error:
            raise ConfigError(f"ssl: {error}") from error


def _batches(params: Params) -> Iterator[Given]:
    """Name and shape of what the model is given at once in every training stage."""
    stages = trained_stages(params)
    devices = 1 if params.runtime.devices == "auto" else params.runtime.devices
    for name, augment, prepared in augmentations(params):
        section = stages[name.partition(".")[0]]
        for one in prepared:
            size = (augment.crop_height or one.height, augment.crop_width or one.width)
            yield name, (section.batch_size // section.accumulate // devices, 3, *size)


def _check_model(model: ModelParams, num_classes: int, batches: Sequence[Given]) -> None:
    try:
        _try(model, num_classes, batches, "meta")
    except Exception:  # some networks cannot be built without values: with them they say what is wrong
        _try(model, num_classes, batches, "cpu")


def _try(model: ModelParams, num_classes: int, batches: Sequence[Given], device: str) -> None:
    with torch.random.fork_rng(devices=()), torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net = build_model(model, num_classes=num_classes)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
        for shape, name in {shape: name for name, shape in reversed(batches)}.items():
            try:
                net(torch.zeros(shape), return_auxiliary=True)
            except (ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"{name}: {model.encoder} with decoder {model.decoder} does not train on {shape[0]} "
                    f"images of {shape[2]} x {shape[3]} pixels at once (crop_height x crop_width; batch_size "
                    f"divided by accumulate and runtime.devices): {error}"
                ) from error
