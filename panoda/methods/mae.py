"""Masked autoencoder pretraining (He et al., CVPR 2022, arXiv 2111.06377) on images without labels.

The encoder sees a quarter of the patches, a small decoder reconstructs the pixels of the others; the loss is the
mean squared error over the removed patches. AdamW (0.9, 0.95) with weight decay 0.05, rate = base rate x batch /
256, linear warm-up, then half a cosine; random resized crops and mirroring are the only augmentation. Beyond the
paper: crops across a panorama's seam, pinhole views out of it, and removal by solid angle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from panoda.config import Count, SslParams
from panoda.data.loading.image_crops import ImageCrop
from panoda.data.loading.loader import Batch
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.transforms import normalise
from panoda.engine.method import Method, Setup
from panoda.engine.seeds import stream_seed
from panoda.methods.parts.self_supervised import SelfSupervisedTask, fixed_crops, image_crop, side_by_side
from panoda.models.mae import (
    DECODER,
    MaskedAutoencoder,
    encoder_tensors,
    mae_for,
    noise_by_area,
    reconstruction,
)
from panoda.system.context import RunContext
from panoda.system.shares import rows


class MAEParams(SslParams):
    """Masked autoencoder: reconstruct the pixels of removed patches."""

    method: Literal["mae"] = "mae"
    """This method."""
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    """Share of the patches that is removed."""
    mask_by: Literal["uniform", "solid_angle"] = "uniform"
    """Which: all alike, or those of panoramas in proportion to the area of the sphere they cover."""
    norm_pix_loss: bool = True
    """Targets are pixels with their patch's own mean and deviation removed."""
    decoder_embed_dim: Annotated[int, Field(ge=4)] = DECODER["decoder_embed_dim"]
    """Width of the decoder."""
    decoder_depth: Count = DECODER["decoder_depth"]
    """Blocks of the decoder."""
    decoder_num_heads: Annotated[int, Field(ge=1)] = DECODER["decoder_num_heads"]
    """Attention heads of the decoder."""

    @model_validator(mode="after")
    def _heads(self) -> MAEParams:
        if self.decoder_embed_dim % self.decoder_num_heads or self.decoder_embed_dim % 4:
            raise ValueError(
                f"decoder_embed_dim is {self.decoder_embed_dim}; expected a multiple of decoder_num_heads "
                f"({self.decoder_num_heads}) and of 4"
            )
        return self


class MAETask(SelfSupervisedTask):
    """Mean squared error on removed patches."""

    def __init__(
        self,
        model: Any,
        batches: Callable[[int], Iterator[Batch]],
        *,
        images: Mixture,
        crop: ImageCrop,
        params: MAEParams,
        seed: int,
        context: RunContext,
    ) -> None:
        """Train ``model`` on ``batches(start_step)``.

        Args:
            model: A ``MaskedAutoencoder``.
            batches: Crops of ``images``.
            images: What the fixed images are of.
            crop: How these are cut.
            params: The method's parameters.
            seed: Of the fixed images' masks.
            context: Device, precision.
        """
        self.trained: Any = model
        self.crops = batches
        self.images, self.crop = images, crop
        self.params, self.seed, self.context = params, seed, context
        self.normal = model.mean, model.std
        bands = [(*part.band, float(part.height)) for part in images.parts.values()]
        self.bands = torch.tensor(bands)  # (P, 3) latitudes of the edges, nan for pinhole images; rows

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Crops."""
        return self.crops(start_step)

    def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """The reconstruction error."""
        device, p = self.context.device, self.params
        images = normalise(batch["image"].to(device, non_blocking=True), *self.normal)
        count = images.shape[2] * images.shape[3] // self.trained.patch_size**2
        noise = rows(lambda n: torch.rand(n, count, device=device), len(images))
        if p.mask_by == "solid_angle":
            noise = noise_by_area(noise, self.areas(batch).to(device, non_blocking=True))
        loss, _, _ = self.trained(images, mask_ratio=p.mask_ratio, noise=noise, norm_pix_loss=p.norm_pix_loss)
        return {"loss/total": loss}

    def areas(self, batch: Batch) -> Tensor:
        """(B, L) area of every patch: the mean cosine of its latitudes; 1 in pinhole images and views."""
        part = torch.bucketize(batch["indices"], torch.tensor(self.images.offsets), right=True) - 1
        top, bottom, height = self.bands[part].T[..., None]
        latitude = top + (bottom - top) * batch["rows"] / height  # (B, H)
        cosine = latitude.cos().nan_to_num(1.0).clamp(min=1e-3)
        down = cosine.unflatten(1, (-1, self.trained.patch_size)).mean(dim=2)  # (B, h)
        across = batch["image"].shape[3] // self.trained.patch_size
        return down[..., None].expand(-1, -1, across).flatten(1)

    @torch.no_grad()
    def examine(self, model: MaskedAutoencoder) -> tuple[dict[str, float], np.ndarray]:
        """Loss on the fixed images, and a picture: input, what was seen, and reconstruction, a row each."""
        p, device = self.params, self.context.device
        images = normalise(fixed_crops(self.images, self.crop, p.fixed_images).to(device), *self.normal)
        count = images.shape[2] * images.shape[3] // model.patch_size**2
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(len(images), count, generator=generator).to(device)
        was_training = model.training
        model.eval()
        with self.context.autocast():
            loss, prediction, mask = model(
                images, mask_ratio=p.mask_ratio, noise=noise, norm_pix_loss=p.norm_pix_loss
            )
        model.train(was_training)
        seen, whole = reconstruction(model, images, prediction, mask, norm_pix_loss=p.norm_pix_loss)
        picture = side_by_side([images, seen, whole], *self.normal)
        return {"loss/validation": float(loss)}, picture

    def encoder(self, model: MaskedAutoencoder) -> dict[str, Tensor]:
        """What the segmentation model's encoder starts from."""
        return encoder_tensors(model)


def model(encoder: str, params: MAEParams) -> MaskedAutoencoder:
    """The masked autoencoder for an encoder; ValueError for one that is no plain ViT."""
    return mae_for(
        encoder,
        decoder_embed_dim=params.decoder_embed_dim,
        decoder_depth=params.decoder_depth,
        decoder_num_heads=params.decoder_num_heads,
    )


def task(setup: Setup) -> MAETask:
    """The task of a stage's run."""
    p: MAEParams = setup.params
    images = setup.labelled
    assert isinstance(images, Mixture)
    crop = image_crop(images, p)
    return MAETask(
        setup.model,
        setup.crops(images, crop, domain="images"),
        images=images,
        crop=crop,
        params=p,
        seed=stream_seed(setup.seed, "ssl_pretrain fixed masks"),
        context=setup.context,
    )


METHOD = Method(stage="ssl_pretrain", params=MAEParams, task=task, model=model)
