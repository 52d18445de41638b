"""BEiT pretraining (Bao et al., ICLR 2022, arXiv 2106.08254) on images without labels.

First a tokenizer learns to write images as grids of codes; then the encoder sees images with two fifths of the patches
masked in blocks, and predicts the codes of these; the loss is the cross-entropy over the masked patches of a batch.
Deviation: the tokenizer is trained on the same images (or one of an earlier run is loaded) instead of DALL-E's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from panoda.config import Probability, SslParams
from panoda.data.loading.loader import Batch
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.transforms import normalise
from panoda.engine.method import Method, Setup
from panoda.engine.seeds import stream_seed
from panoda.methods.parts.self_supervised import SelfSupervisedTask, fixed_crops, image_crop, side_by_side
from panoda.methods.parts.tokenizers import (
    FILE,
    TokenizerParams,
    check_reduction,
    make_tokenizer,
    save_tokenizer,
    seen,
)
from panoda.models.beit import MaskedTokenModel, block_masks, encoder_tensors
from panoda.models.tokenizer import CodebookUse, DiscreteVAE
from panoda.system.context import RunContext
from panoda.system.shares import rows


class BEiTParams(SslParams):
    """BEiT: predict the codes of masked patches."""

    method: Literal["beit"] = "beit"
    """This method."""
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Share of the patches that is masked, at most."""
    smallest_block: Annotated[int, Field(ge=1)] = 16
    """Patches of a masked block at least."""
    block_aspect: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Smallest height over width of a block; the largest is its inverse."""
    shared_bias: bool = True
    """For BEiT networks: one table of relative positions for all blocks, as published, or one for each."""
    drop_path: Probability = 0.1
    """Stochastic depth of the last block."""
    tokenizer: TokenizerParams = TokenizerParams()
    """What writes images as codes."""


class BEiTTask(SelfSupervisedTask):
    """Cross-entropy on the codes of masked patches."""

    def __init__(
        self,
        model: MaskedTokenModel,
        tokenizer: DiscreteVAE,
        batches: Callable[[int], Iterator[Batch]],
        *,
        use: CodebookUse,
        fixed: Tensor,
        params: BEiTParams,
        seed: int,
        context: RunContext,
    ) -> None:
        """Train ``model`` on ``batches(start_step)``.

        Args:
            model: Encoder and head.
            tokenizer: Frozen.
            batches: Crops of ``images``.
            use: What the tokenizer uses of its codebook.
            fixed: The fixed images, (N, 3, H, W) uint8.
            params: The method's parameters.
            seed: Of the fixed images' masks.
            context: Device, precision.
        """
        self.trained: Any = model
        self.tokenizer, self.crops, self.use = tokenizer, batches, use
        self.params, self.seed, self.context = params, seed, context
        self.normal, self.patch = (model.mean, model.std), model.encoder.patch
        self.fixed = fixed

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Crops."""
        return self.crops(start_step)

    def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy, and the share of masked patches whose code is predicted."""
        raw = batch["image"].to(self.context.device, non_blocking=True)
        grid = (raw.shape[2] // self.patch, raw.shape[3] // self.patch)
        mask = rows(lambda count: self._masks(count, grid), len(raw))
        loss, accuracy = self.trained.loss(
            normalise(raw, *self.normal), self._codes(raw), mask_ratio=self.params.mask_ratio, mask=mask
        )
        return {"loss/total": loss, "accuracy/tokens": accuracy}

    def _masks(self, count: int, grid: tuple[int, int], seed: int | None = None) -> Tensor:
        p = self.params
        return block_masks(
            count, grid, mask_ratio=p.mask_ratio, smallest=p.smallest_block, aspect=p.block_aspect, seed=seed
        )

    @torch.no_grad()
    def _codes(self, raw: Tensor) -> Tensor:
        return self.tokenizer.tokens(seen(raw, self.tokenizer.reduction, self.patch))

    @torch.no_grad()
    def examine(self, model: MaskedTokenModel) -> tuple[dict[str, float], np.ndarray]:
        """Loss and accuracy on the fixed images; for each: it, masked, of its codes, of predicted ones."""
        raw = self.fixed.to(self.context.device)
        images, codes = normalise(raw, *self.normal), self._codes(raw)
        grid = model.grid(images)
        mask = self._masks(len(raw), grid, self.seed)
        was_training = model.training
        model.eval()
        with self.context.autocast():
            loss, accuracy = model.loss(images, codes, mask_ratio=self.params.mask_ratio, mask=mask)
            logits, _ = model(images, mask=mask)
        model.train(was_training)
        hidden = mask.to(raw.device)
        predicted = codes.flatten(1).masked_scatter(hidden, logits.argmax(dim=1)).view_as(codes)
        shown = images * ~self._pixels(hidden.unflatten(1, grid), images)
        columns = [images, shown, *(self._picture(part, images) for part in (codes, predicted))]
        values = {"loss/validation": float(loss), "accuracy/validation": float(accuracy)}
        return values, side_by_side(columns, *self.normal)

    def _pixels(self, cells: Tensor, images: Tensor) -> Tensor:
        """(N, h, w) -> (N, 1, H, W)."""
        return torch.nn.functional.interpolate(cells[:, None].float(), size=images.shape[2:]).bool()

    def _picture(self, codes: Tensor, images: Tensor) -> Tensor:
        """What the tokenizer makes of codes, normalised and as large as the images."""
        decoded = self.tokenizer.decode(codes).float().clamp(0, 1)
        return normalise(torch.nn.functional.interpolate(decoded, size=images.shape[2:]), *self.normal)

    def encoder(self, model: MaskedTokenModel) -> dict[str, Tensor]:
        """What the segmentation model's encoder starts from."""
        return encoder_tensors(model)

    def metrics(self) -> dict[str, float]:
        """Use of the codebook."""
        return {"tokenizer/codes_used": float(self.use.used), "tokenizer/perplexity": self.use.perplexity}

    def save(self, folder: Path) -> None:
        """Write tokenizer.safetensors."""
        save_tokenizer(folder / FILE, self.tokenizer)


def model(encoder: str, params: BEiTParams) -> MaskedTokenModel:
    """The network for an encoder; ValueError for one that is no plain ViT, or a tokenizer of another grid."""
    kind, _, name = encoder.partition(":")
    if kind != "vit" or not name:
        raise ValueError(f"BEiT pretrains plain ViTs (vit:NAME), not {encoder}")
    net = MaskedTokenModel(
        name,
        vocabulary=params.tokenizer.vocabulary,
        drop_path=params.drop_path,
        shared_bias=params.shared_bias,
    )
    check_reduction(params.tokenizer.reduction, net.encoder.patch)
    return net


def task(setup: Setup) -> BEiTTask:
    """The task of a stage's run; trains the tokenizer, or goes on with it, before it returns."""
    p: BEiTParams = setup.params
    images = setup.labelled
    assert isinstance(images, Mixture)
    net: Any = setup.model
    crop = image_crop(images, p)
    tokenizer, use = make_tokenizer(
        p.tokenizer,
        lambda own: setup.crops(images, crop, domain="tokenizer", params=own),
        patch=net.encoder.patch,
        seed=setup.seed,
        context=setup.context,
    )
    return BEiTTask(
        net,
        tokenizer,
        setup.crops(images, crop, domain="images"),
        use=use,
        fixed=fixed_crops(images, crop, p.fixed_images),
        params=p,
        seed=stream_seed(setup.seed, "ssl_pretrain fixed masks"),
        context=setup.context,
    )


METHOD = Method(stage="ssl_pretrain", params=BEiTParams, task=task, model=model)
