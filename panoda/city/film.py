"""From radiance to pixels: white balance, exposure, tone curve, sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panoda.config import LookParams


@dataclass(frozen=True)
class Exposure:
    """What the camera does to radiance; drawn per image."""

    ev: float = 0.0
    gamma: float = 1.0
    white_balance: float = 0.0
    noise: float = 0.0


def draw_exposure(look: LookParams, rng: np.random.Generator) -> Exposure:
    """Exposure, tone curve, colour cast and noise of one image."""
    return Exposure(
        ev=float(rng.uniform(*look.exposure_ev)),
        gamma=float(rng.uniform(*look.gamma)),
        white_balance=float(rng.uniform(*look.white_balance)),
        noise=float(rng.uniform(*look.noise)),
    )


def expose(radiance: Tensor, exposure: Exposure) -> Tensor:
    """Linear radiance -> film response in [0, 1): white balance, exposure, soft shoulder."""
    shift = 0.22 * exposure.white_balance
    cast = torch.tensor([1 + shift, 1.0, 1 - 1.3 * shift])
    return 1 - torch.exp(radiance * (cast * (-1.15 * 2.0**exposure.ev)))


def develop(image: Tensor, exposure: Exposure, *, seed: int) -> Tensor:
    """Film response (H, W, 3) -> uint8: display encoding, tone curve, sensor noise."""
    encoded = image.clamp(0, 1) ** (1 / 2.2)
    curved = encoded * encoded * (3 - 2 * encoded)
    encoded = torch.lerp(encoded, curved, 0.45) ** exposure.gamma
    if exposure.noise > 0:
        generator = torch.Generator().manual_seed(seed)
        grain = torch.randn(encoded.shape, generator=generator)
        encoded = encoded + exposure.noise * grain * (0.6 + 0.4 * (1 - encoded))
    return (encoded.clamp(0, 1) * 255).round().to(torch.uint8)
