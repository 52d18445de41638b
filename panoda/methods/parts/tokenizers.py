"""Training the tokenizer whose codes BEiT predicts, from the images that the encoder learns from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from panoda.config import Count, NonNegative, Positive, Section
from panoda.data.loading.loader import Batch
from panoda.engine.loop import run_loop
from panoda.engine.optim import build_optimizer, build_scheduler
from panoda.engine.parallel import parallelise
from panoda.engine.seeds import stream_seed
from panoda.engine.task import Task
from panoda.models.core.checkpoint import check_fit, read_safetensors, tensor_file
from panoda.models.core.errors import CheckpointError, require_file
from panoda.models.tokenizer import CodebookUse, DiscreteVAE, codebook_use
from panoda.system.context import MetricLogger, RunContext

log = logging.getLogger("panoda")
FILE = "tokenizer.safetensors"
FORMAT = "panoda-tokenizer-1"
LOOKED_AT = 8
"""Batches over which the use of the codebook is counted."""


class TokenizerParams(Section):
    """A discrete VAE, trained before the encoder; its codes are what the encoder predicts."""

    weights: str | None = None
    """A tokenizer.safetensors of an earlier run; null trains one."""
    iterations: Annotated[int, Field(ge=1)] = 3000
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per step."""
    lr: Positive = 1e-3
    """Peak learning rate; half a cosine to zero."""
    warmup_iterations: Count = 0
    """Steps of linear learning-rate warm-up."""
    vocabulary: Annotated[int, Field(ge=2, le=8192)] = 8192
    """Number of codes."""
    reduction: Annotated[int, Field(ge=2)] = 8
    """Pixels of a side per token, a power of two up to the patch; for less than the patch the tokenizer sees the
    images smaller, so that each patch has one code (DALL-E's: 8)."""
    width: Annotated[int, Field(ge=1)] = 128
    """Channels."""
    temperature: tuple[Positive, Positive] = (1.0, 0.0625)
    """Of the Gumbel-softmax at the start, and from three quarters of the steps on; it falls by a constant factor."""
    kl_weight: NonNegative = 1e-3
    """Weight of the divergence of the codes' shares of a batch from uniform ones; more keeps more codes in use."""


class TokenizerTask(Task):
    """Reconstruction through codes."""

    trained: Any

    def __init__(
        self,
        model: DiscreteVAE,
        batches: Callable[[int], Iterator[Batch]],
        *,
        params: TokenizerParams,
        patch: int,
        device: torch.device,
    ) -> None:
        """Train ``model`` on ``batches(start_step)``, for an encoder with patches of ``patch`` pixels."""
        self.trained, self.crops = model, batches
        self.params, self.patch, self.device = params, patch, device

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Crops."""
        return self.crops(start_step)

    def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """``loss/total``, ``loss/reconstruction`` (mean squared error, pixels in 0..1)."""
        p = self.params
        passed = min(1.0, step / (0.75 * p.iterations))
        temperature = p.temperature[0] * (p.temperature[1] / p.temperature[0]) ** passed
        images = seen(batch["image"].to(self.device, non_blocking=True), p.reduction, self.patch)
        loss, error, _ = self.trained(images, temperature=temperature, kl_weight=p.kl_weight)
        return {"loss/total": loss, "loss/reconstruction": error}


class _Named(MetricLogger):
    """Puts ``tokenizer/`` before all names: the encoder's own training logs the same ones."""

    def __init__(self, logger: MetricLogger) -> None:
        self._logger = logger

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics({f"tokenizer/{name}": value for name, value in metrics.items()}, step)

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        self._logger.log_image(f"tokenizer/{key}", image, step)


def seen(images: Tensor, reduction: int, patch: int) -> Tensor:
    """Images (N, 3, H, W) uint8 as the tokenizer takes them: 0..1, one token for each patch."""
    found = images.float() / 255
    if patch == reduction:
        return found
    size = [side * reduction // patch for side in images.shape[2:]]
    return F.interpolate(found, size=size, mode="bilinear", antialias=True)


def check_reduction(reduction: int, patch: int) -> None:
    """Refuse a tokenizer whose tokens cannot be made one for each patch.

    Raises:
        ValueError: they cannot.
    """
    if reduction > patch or patch % reduction:
        raise ValueError(
            f"a tokenizer of another grid: its tokens are {reduction} pixels wide, the encoder's patches {patch}; set "
            f"ssl.tokenizer.reduction to {patch} or a power of two that divides it"
        )


def make_tokenizer(
    params: TokenizerParams,
    batches: Callable[[TokenizerParams], Callable[[int], Iterator[Batch]]],
    *,
    patch: int,
    seed: int,
    context: RunContext,
) -> tuple[DiscreteVAE, CodebookUse]:
    """Train a tokenizer, or load the one that the parameters name; frozen.

    A killed training goes on from its last resume point, in folder ``tokenizer`` of the stage's.

    Args:
        params: Its own.
        batches: Parameters -> function from start step to batches.
        patch: Of the encoder.
        seed: Run seed.
        context: Of the stage.

    Returns:
        The tokenizer and how much of its codebook it uses on the first batches; a collapse is logged.

    Raises:
        CheckpointError: the file is none of a tokenizer, or of other sizes than the parameters say.
    """
    torch.manual_seed(stream_seed(seed, "tokenizer"))
    net = DiscreteVAE(vocabulary=params.vocabulary, reduction=params.reduction, width=params.width)
    if params.weights is not None:
        _load(net, Path(params.weights))
    net.to(context.device)
    crops = batches(params)
    if params.weights is None:
        task = TokenizerTask(net, crops, params=params, patch=patch, device=context.device)
        _train(task, seed=stream_seed(seed, "tokenizer"), context=context)
    net.eval().requires_grad_(False)
    use = _use(net, crops, patch, context)
    if use.collapsed and context.main:
        log.warning("%s", use.advice())
    return net, use


def _train(task: TokenizerTask, *, seed: int, context: RunContext) -> None:
    params = task.params
    folder = None if context.state_dir is None else context.state_dir / "tokenizer"
    context = replace(context, state_dir=folder, logger=_Named(context.logger), shard=False)
    parallelise(task, context)
    optimizer = build_optimizer(task.trained, name="adamw", lr=params.lr, weight_decay=0.0)
    scheduler = build_scheduler(
        optimizer,
        horizon=params.iterations,
        warmup_iterations=params.warmup_iterations,
        poly_power=1.0,
        schedule="cosine",
    )
    task.trained.train()
    run_loop(
        task,
        optimizer=optimizer,
        scheduler=scheduler,
        num_steps=params.iterations,
        seed=seed,
        clip_norm=0.0,
        context=context,
        description="ssl-pretrain, tokenizer",
    )


@torch.no_grad()
def _use(
    net: DiscreteVAE, crops: Callable[[int], Iterator[Batch]], patch: int, context: RunContext
) -> CodebookUse:
    counts = torch.zeros(net.vocabulary, dtype=torch.long)
    for _, batch in zip(range(LOOKED_AT), crops(0), strict=False):
        tokens = net.tokens(seen(batch["image"].to(context.device), net.reduction, patch))
        counts += torch.bincount(tokens.flatten().cpu(), minlength=net.vocabulary)
    return codebook_use(counts)


def save_tokenizer(path: Path, net: DiscreteVAE) -> None:
    """Write a tokenizer; equal ones give equal bytes."""
    sizes = {key: str(value) for key, value in net.arguments.items()}
    path.write_bytes(tensor_file(net.state_dict(), {"format": FORMAT, **sizes}))


def _load(net: DiscreteVAE, path: Path) -> None:
    require_file(path, "no such tokenizer; stage ssl_pretrain with method beit writes one")
    metadata, tensors = read_safetensors(path, with_tensors=True, again="train it again")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: no tokenizer; expected a {FILE} of stage ssl_pretrain with method beit"
        )
    said = {key: metadata.get(key) for key in net.arguments}
    wanted = {key: str(value) for key, value in net.arguments.items()}
    if said != wanted:
        other = ", ".join(f"{key} {said[key]}, not {wanted[key]}" for key in said if said[key] != wanted[key])
        raise CheckpointError(f"{path}: a tokenizer of {other}; set ssl.tokenizer to what the file has")
    check_fit(net, tensors, where=str(path))
    net.load_state_dict(tensors)
