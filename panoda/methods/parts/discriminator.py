"""Domain discriminator on softmax outputs.

Source: AdaptSegNet (Tsai et al. 2018) as used by Trans4PASS for its adversarial warm-up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Discriminator(nn.Sequential):
    """Five 4x4 stride-2 convolutions, LeakyReLU 0.2 between them; one domain logit per 32x32 pixels."""

    def __init__(self, num_classes: int, *, width: int = 64) -> None:
        """Build for (N, num_classes, H, W) probabilities; layers have width * 1, 2, 4, 8 channels."""
        sizes = [num_classes, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(sizes[-1], 1, 4, stride=2, padding=1))

    def forward(self, probs: Tensor) -> Tensor:
        """Probabilities (N, K, H, W) -> domain logits (N, 1, H // 32, W // 32).

        Raises:
            ValueError: maps smaller than 32 pixels.
        """
        if min(probs.shape[2], probs.shape[3]) < 32:
            raise ValueError(f"maps of {probs.shape[2]}x{probs.shape[3]} are too small; at least 32x32")
        # Convolutions are faster on channels-last maps, the copy included.
        return super().forward(probs.contiguous(memory_format=torch.channels_last))
