"""Stage ssl_pretrain: what the encoder learns from images without labels, before stage pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from panoda.config import ModelParams, NoneParams, SslParams
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.distributed import result_directory
from panoda.engine.launch import on_devices
from panoda.engine.loop import LoopState
from panoda.engine.method import Setup, get_method
from panoda.engine.parallel import full_model, parallelise
from panoda.engine.seeds import stream_seed
from panoda.engine.training import run_training, save_history
from panoda.methods.parts.self_supervised import SelfSupervisedTask
from panoda.models.core.checkpoint import tensor_file
from panoda.models.weights.pretrained import WeightsCard, save_weights
from panoda.stages.weights import ENCODER, REPORT
from panoda.system.context import RunContext
from panoda.system.errors import DataError
from panoda.system.files import staged_directory, write_json

RESULT = "encoder"
"""Folder of the output that stage pretrain reads, laid out as that of stage weights."""


@on_devices
def ssl_pretrain(
    *,
    out: Path,
    model: ModelParams,
    params: SslParams | NoneParams,
    seed: int,
    context: RunContext,
    source_train: Path | None = None,
    more_sources: Path | None = None,
    target_train: Path | None = None,
) -> dict[str, float]:
    """Train the encoder of ``model.encoder`` on images alone; method none leaves an empty result.

    Args:
        out: Result folder (replaced): encoder/ with the weights that stage pretrain starts from, pretrained.safetensors
            with the whole pretrained network, reconstruction.png of fixed images, history.csv, metrics.json.
        model: Of it only the encoder's name.
        source_train: Prepared train split; labels, if any, are never looked at. So for the others.
        more_sources: ``data/prepared/more_sources``, for the images of further sources.

    Returns:
        The last step's loss, that of the fixed images, and what the method says; nothing for method none.

    Raises:
        ValueError: an encoder that the method does not know, or crops that its patches do not divide.
        TrainingDiverged: a loss or gradient is not finite.
    """
    if isinstance(params, NoneParams):
        with staged_directory(out) as folder:
            (folder / RESULT).mkdir()
            write_json(folder / RESULT / REPORT, {"weights": None})
            write_json(folder / "metrics.json", {})
        return {}
    images = _images(params, source_train, more_sources, target_train)
    method = get_method(params.method)
    assert method.model is not None
    torch.manual_seed(stream_seed(seed, "model"))
    net = method.model(model.encoder, params).to(context.device)
    setup = Setup("ssl_pretrain", cast(Any, net), params, seed, context, images)
    task = cast(SelfSupervisedTask, method.task(setup))
    parallelise(task, context)

    def examine(state: LoopState) -> dict[str, float]:
        values, picture = task.examine(full_model(net, context))
        context.logger.log_image("reconstruction", picture, state.step)
        return values

    state = run_training(
        task,
        params.model_copy(update={"optim": params.scaled_optim()}),
        seed=stream_seed(seed, "ssl_pretrain"),
        context=context,
        description="ssl-pretrain",
        validate=examine,
        validate_every=params.validate_every,
    )
    kept = full_model(net, context)
    metrics, picture = task.examine(kept)
    losses = [row["loss/total"] for row in state.history if "loss/total" in row]
    metrics |= {"loss/total": losses[-1], **task.metrics()}
    card = WeightsCard(
        encoder=model.encoder,
        source=f"stage ssl_pretrain, method {params.method}, {params.iterations} steps, seed {seed}",
        layout=params.method,
    )
    with result_directory(out, context) as folder:
        if context.main:
            (folder / RESULT).mkdir()
            tensors = task.encoder(kept)
            save_weights(folder / RESULT / ENCODER, tensors, card)
            report = {"weights": params.method, "card": card.model_dump(mode="json"), "loaded": len(tensors)}
            write_json(folder / RESULT / REPORT, report)
            data = tensor_file(kept.state_dict(), {"format": "pt", "method": params.method})
            (folder / "pretrained.safetensors").write_bytes(data)
            Image.fromarray(picture).save(folder / "reconstruction.png")
            task.save(folder)
            save_history(folder, state, metrics, context)
    return metrics


def _images(params: SslParams, source: Path | None, more: Path | None, target: Path | None) -> Mixture:
    """The train splits that ``params.images`` names, as one."""
    folders = {"source": source, "target": target}
    parts = {}
    for role in params.images:
        folder = folders.get(role) if role in folders else more and more / role / "train"
        if folder is None:
            raise DataError(f"ssl.images names {role}, but no folder with its images was given")
        parts[role] = PreparedSplit(folder)
    return Mixture(parts, params.images)
