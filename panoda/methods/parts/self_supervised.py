"""What methods share that learn from images without labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panoda.config import SslParams
from panoda.data.loading.image_crops import ImageCrop
from panoda.data.loading.mixture import Mixture
from panoda.engine.task import Task
from panoda.inference.pictures import picture_indices
from panoda.models.core.channels import per_channel


class SelfSupervisedTask(Task):
    """A task of stage ssl_pretrain: what it learns is an encoder."""

    @abstractmethod
    def examine(self, model: Any) -> tuple[dict[str, float], np.ndarray]:
        """Values of ``model`` on fixed images with fixed masks, and a picture (H, W, 3) uint8 of them."""

    @abstractmethod
    def encoder(self, model: Any) -> dict[str, Tensor]:
        """The encoder's weights, by the names of a ``Segmenter``."""


def image_crop(images: Mixture, params: SslParams) -> ImageCrop:
    """How a method's parameters say that images are cut."""
    return ImageCrop(
        images=images,
        height=params.crop_height,
        width=params.crop_width,
        scale=params.scale,
        hflip=params.hflip,
        yaw_roll=params.yaw_roll and images.full_circle,
        views=params.views,
        view_fov_deg=params.view_fov_deg,
    )


def fixed_crops(images: Mixture, crop: ImageCrop, count: int) -> Tensor:
    """The middles of ``count`` images or a few more, as many of every part; (N, 3, H, W) uint8."""
    chosen = [
        offset + index
        for offset, part in zip(images.offsets, images.parts.values(), strict=True)
        for index in picture_indices(len(part), -(-count // len(images.parts)))
    ]
    return torch.stack([crop.centre(images[index]["image"]) for index in chosen])


def side_by_side(columns: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """One row of pictures per image, one column per kind, 4 white pixels between them.

    Args:
        columns: Normalised images of each kind, (N, 3, H, W).
        mean: That they were normalised with.
        std: That they were normalised with.

    Returns:
        (N * (H + 4) - 4, C * (W + 4) - 4, 3) uint8.
    """
    images = torch.stack(list(columns), dim=1).float()  # (N, C, 3, H, W)
    bytes_ = ((images * per_channel(std, images) + per_channel(mean, images)) * 255).round().clamp(0, 255)
    framed = torch.nn.functional.pad(bytes_, (0, 4, 0, 4), value=255.0)
    sheet = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (N * H', C * W', 3)
    return sheet[:-4, :-4].to(torch.uint8).cpu().numpy()
