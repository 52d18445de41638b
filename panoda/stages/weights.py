"""Stage weights: pretrained weights as the model will load them, and a report of what is new or left out."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from panoda.config import ModelParams
from panoda.models import Segmenter, create_model
from panoda.models.core.errors import CheckpointError
from panoda.models.weights.fitting import fit
from panoda.models.weights.pretrained import WeightsCard, read_weights, save_weights
from panoda.system.context import RunContext
from panoda.system.files import staged_directory, write_json

TIMM, IMAGENET = "timm", "imagenet"
ENCODER, MODEL, REPORT = "encoder.safetensors", "model.safetensors", "report.json"
FOREIGN = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".onnx", ".pt2", ".json", ".zip", ".gz", ".npz", ".h5")
log = logging.getLogger("panoda")


def weights(*, weights: Path, out: Path, model: ModelParams, context: RunContext) -> dict[str, float]:
    """Take ``model.weights`` from the folder of weights and make sure that they fit the model.

    Args:
        out: Result folder (replaced): report.json and metrics.json, and, with weights given,
            encoder.safetensors, or model.safetensors when they include the model's decoder.

    Returns:
        Numbers of entries loaded, new and dropped; nothing without weights.

    Raises:
        CheckpointError: no such file, a file that was not imported, or another model's weights.
    """
    if model.weights is None:
        with staged_directory(out) as folder:
            write_json(folder / REPORT, {"weights": None})
            write_json(folder / "metrics.json", {})
        return {}
    tensors, card = _chosen(model.weights, weights, model.encoder)
    log.info("weights %s: %s", model.weights, card.source)
    found = fit(build_model(model, num_classes=card.num_classes or 2), tensors, card)
    for note in found.notes:
        log.warning("weights %s: %s", model.weights, note)
    whole = any(not key.startswith("encoder.") for key in found.tensors)
    kept = card if whole else card.model_copy(update={"decoder": None, "num_classes": None, "width": None})
    metrics = {
        "tensors_loaded": float(len(found.tensors)),
        "tensors_new": float(len(found.new)),
        "tensors_dropped": float(len(found.dropped)),
    }
    with staged_directory(out) as folder:
        save_weights(folder / (MODEL if whole else ENCODER), found.tensors, kept)
        write_json(
            folder / REPORT,
            {"weights": model.weights, "card": card.model_dump(mode="json"), **found.summary()},
        )
        write_json(folder / "metrics.json", metrics)
    context.logger.log_metrics(metrics, 0)
    return metrics


def build_model(model: ModelParams, *, num_classes: int) -> Segmenter:
    """The model of section ``model`` with random weights; ValueError as ``create_model``."""
    return create_model(
        model.encoder,
        num_classes=num_classes,
        decoder=model.decoder,
        drop_path=model.drop_path,
        width=model.width,
        blocks=model.blocks,
        wrap=model.wrap,
        auxiliary_weights=model.auxiliary_weights,
    )


def read_stage_weights(folder: Path) -> tuple[dict[str, Any], WeightsCard] | None:
    """What this stage wrote into ``folder``; None without weights."""
    for name in (MODEL, ENCODER):
        if (folder / name).is_file():
            return read_weights(folder / name)
    if not (folder / REPORT).is_file():
        raise CheckpointError(f"{folder}: not a result of stage weights (no {REPORT}); run that stage first")
    return None


def _chosen(name: str, folder: Path, encoder: str) -> tuple[dict[str, Any], WeightsCard]:
    """Weights by their name below ``folder``, or the published ones of the encoder."""
    if name in (TIMM, IMAGENET):
        # Imported here: only this may need the network.
        from panoda.models.weights.hub import fetch, published
        from panoda.models.weights.importing import import_installed

        installed = import_installed(encoder) if name == IMAGENET else None
        if installed is not None:
            return installed.tensors, installed.card
        path = folder / published(encoder).file_name
        if path.is_file():
            return read_weights(path)
        imported, _ = fetch(encoder)
        return imported.tensors, imported.card
    return read_weights(folder / weights_file(name, folder))


def weights_file(name: str, folder: Path) -> str:
    """File name below ``folder`` of what model.weights says; ``.safetensors`` may be left out.

    Raises:
        CheckpointError: a path elsewhere, or a file of another kind.
    """
    path = PurePosixPath(Path(name).expanduser().as_posix())
    for given in (folder.as_posix(), folder.absolute().as_posix(), folder.resolve().as_posix()):
        if path.is_relative_to(given):
            path = path.relative_to(given)
    foreign = path.suffix != ".safetensors" and (path.suffix in FOREIGN or (folder / path).is_file())
    if path.is_absolute() or ".." in path.parts or foreign:
        raise CheckpointError(
            f"model.weights is {name!r}; expected the name of a file below {folder}, imagenet, timm or null: run "
            f"`panoda weights import {name}` and put the name that it prints there"
        )
    return str(path) if path.suffix == ".safetensors" else f"{path}.safetensors"
