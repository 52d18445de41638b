"""Stage adapt: self-training on pseudo-labels with mutual prototypical adaptation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from panoda.adaptation.adversarial import Adversary
from panoda.adaptation.mixing import place
from panoda.adaptation.prototypes import PrototypeBank
from panoda.config import AdaptParams
from panoda.data.mixture import Mixture, training_source
from panoda.data.prepared import PreparedSplit
from panoda.data.pseudo import PseudoLabelSplit
from panoda.geometry.pinhole import pinhole_to_erp
from panoda.labels import get_label_space
from panoda.models.checkpoint import load_model, make_card
from panoda.models.discriminator import Discriminator
from panoda.models.segmenter import Segmenter
from panoda.shares import rows
from panoda.stages.common import (
    batches,
    prepared_size,
    run_training,
    save_training_result,
    section_dict,
    source_weights,
)
from panoda.training.context import RunContext
from panoda.training.distributed import result_directory
from panoda.training.launch import on_devices
from panoda.training.loop import LoopState
from panoda.training.parallel import full_model, parallelise, shard
from panoda.training.seeds import stream_seed
from panoda.training.self_training import SelfTrainingTask, Warp


@on_devices
def adapt(
    *,
    checkpoint: Path,
    source_train: Path,
    target_train: Path,
    pseudo_labels: Path,
    prototypes: Path,
    out: Path,
    params: AdaptParams,
    seed: int,
    context: RunContext,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Adapt a model to the target domain.

    Args:
        checkpoint: The model to start from.
        source_train: Prepared, labelled split.
        target_train: Prepared split; its labels, if any, are never read.
        pseudo_labels: Folder of the pseudo_labels stage.
        prototypes: Folder of the prototypes stage.
        out: Result folder (replaced): model.safetensors, prototypes.safetensors, history.csv, metrics.json.
        params: The adapt section.
        seed: Run seed.
        context: Device, precision, logger, resume folder.
        more_sources: Folder of further prepared sources, one per role; read when ``sources`` names any.
        sources: Section sources: labelled source -> share of the training samples; None = source alone.

    Returns:
        The last step's losses and ``prototypes/moved``, the mean distance the prototypes moved. The last
        weights are kept: no target label could select others.
    """
    source = training_source(source_train, more_sources, sources)
    target = PseudoLabelSplit(PreparedSplit(target_train), pseudo_labels)
    space = get_label_space(source.label_space)
    net, old = load_model(checkpoint, num_classes=space.num_classes, device=context.device)
    mean, seen = read_prototypes(prototypes, num_classes=space.num_classes, dim=net.feature_channels)
    bank = PrototypeBank(mean, seen, ema_momentum=params.mpa.ema_momentum).to(context.device)
    torch.manual_seed(stream_seed(seed, "adapt"))
    task = _task(net, bank, source, target, params, seed, context)
    state = LoopState()
    if params.iterations:
        parallelise(net, context)
        if task.teacher is not None:
            shard(task.teacher.module, context)
        state = run_training(
            task, params, seed=stream_seed(seed, "adapt"), context=context, description="adapt"
        )
    result = full_model(task.result(), context) if params.iterations else net
    card = make_card(
        result,
        label_space=space.name,
        stage="adapt",
        seed=seed,
        params={**old.params, "adapt": section_dict(params), "prepared": prepared_size(target.prepared)},
    )
    last = next((row for row in reversed(state.history) if "loss/total" in row), {})
    metrics = {k: v for k, v in last.items() if k.startswith("loss/")}
    metrics["prototypes/moved"] = _moved(bank, mean, seen)
    with result_directory(out, context) as folder:
        tensors = {"mutual": bank.prototypes.cpu(), "seen": bank.seen.cpu()}
        # Not save_file: it reports a full disk as an error of its own kind.
        if context.main:
            (folder / "prototypes.safetensors").write_bytes(save(tensors, {"label_space": space.name}))
        return save_training_result(
            folder,
            model=result,
            card=card,
            state=state,
            metrics=metrics,
            split=target.prepared,
            context=context,
        )


def read_prototypes(folder: Path, *, num_classes: int, dim: int) -> tuple[Tensor, Tensor]:
    """The mutual prototypes (K, D) and which of them are seen (K,).

    Raises:
        ValueError: missing or unreadable file, or prototypes of another model.
    """
    path = folder / "prototypes.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: unreadable ({error}); run the prototypes stage again") from error
    mean, seen = tensors["mutual"], tensors["seen"]
    if mean.shape != (num_classes, dim):
        raise ValueError(
            f"{path}: prototypes of shape {tuple(mean.shape)}, the model needs {(num_classes, dim)}; "
            "they belong to another model, run the prototypes stage again"
        )
    return mean, seen


def _moved(bank: PrototypeBank, mean: Tensor, seen: Tensor) -> float:
    distance = (bank.prototypes.cpu() - mean).norm(dim=1)[seen]
    return float(distance.mean()) if distance.numel() else 0.0


def _task(
    net: Segmenter,
    bank: PrototypeBank,
    source: PreparedSplit | Mixture,
    target: PseudoLabelSplit,
    params: AdaptParams,
    seed: int,
    context: RunContext,
) -> SelfTrainingTask:
    num_classes = get_label_space(source.label_space).num_classes
    adversary = None
    if params.adversarial_weight > 0:
        adversary = Adversary(Discriminator(num_classes).to(context.device), lr=params.discriminator_lr)
    common: dict[str, Any] = {
        "batch_size": params.batch_size,
        "num_steps": params.iterations,
        "context": context,
    }
    source_seed, target_seed = stream_seed(seed, "adapt source"), stream_seed(seed, "adapt target")
    return SelfTrainingTask(
        net,
        bank,
        batches(source, augment=params.augment_source, colour=True, seed=source_seed, **common),
        batches(target, augment=params.augment_target, colour=False, seed=target_seed, **common),
        params=params,
        weight=source_weights(source, params.class_weights, context.device),
        adversary=adversary,
        warp=_warp(source, target.prepared, params),
        device=context.device,
    )


def _warp(source: PreparedSplit | Mixture, target: PreparedSplit, params: AdaptParams) -> Warp | None:
    """Source crops seen as pinhole cameras at a random azimuth of the target's sphere.

    A crop keeps the focal length (in pixels) of the whole image; the random scale of the augmentation then
    plays the part of a random field of view. Crops of sources that are no pinhole images are placed flat.
    """
    parts = source.parts.values() if isinstance(source, Mixture) else [source]
    if params.erp_warp <= 0 or not target.full_circle or all(p.projection != "pinhole" for p in parts):
        return None
    height, width = target.height, target.width
    lat_top, lat_bottom = math.radians(target.lat_top_deg), math.radians(target.lat_bottom_deg)

    def onto_sphere(
        image: Tensor, label: Tensor, camera: PreparedSplit, turn: Tensor
    ) -> tuple[Tensor, Tensor]:
        if camera.projection != "pinhole":
            return place(image, label, (height, width), turn)
        half = math.tan(math.radians(camera.fov_x_deg) / 2)
        fov_x = 2 * math.atan(half * image.shape[-1] / camera.width)
        azimuth = float(turn[0] * 2 * math.pi - math.pi)
        # Autocast would turn the rays in half precision, which moves pixels by whole columns.
        with torch.autocast(image.device.type, enabled=False):
            placed, ids, _ = pinhole_to_erp(
                image,
                label,
                fov_x=fov_x,
                height=height,
                width=width,
                lat_top=lat_top,
                lat_bottom=lat_bottom,
                azimuth=azimuth,
            )
        return placed, ids

    def warp(image: Tensor, label: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(source, Mixture):
            return onto_sphere(image, label, source, torch.rand(1))
        cameras = [source.part_of(i) for i in indices.tolist()]
        turns = rows(torch.rand, len(cameras)).split(1)
        one = [
            onto_sphere(image[i : i + 1], label[i : i + 1], camera, turns[i])
            for i, camera in enumerate(cameras)
        ]
        return torch.cat([placed for placed, _ in one]), torch.cat([ids for _, ids in one])

    return warp
