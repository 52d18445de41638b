"""Sun, sky, clouds and air of one world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panoda.city.looks import DrawnLook
from panoda.city.noise import fractal_noise

# Sky type -> linear RGB of zenith and horizon, cloud cover, share of direct sun that gets through.
_SKIES = {
    "clear": ((0.16, 0.34, 0.80), (0.62, 0.76, 0.92), 0.22, 1.0),
    "cloudy": ((0.20, 0.36, 0.74), (0.66, 0.74, 0.84), 0.56, 0.85),
    "overcast": ((0.52, 0.55, 0.60), (0.74, 0.76, 0.78), 1.0, 0.25),
    "sunset": ((0.22, 0.30, 0.55), (0.98, 0.62, 0.36), 0.45, 1.0),
}


@dataclass(frozen=True)
class Light:
    """Light and air; RGB linear, (3,) tensors.

    Attributes:
        sun_direction: Unit vector towards the sun.
        sun: Irradiance of the sun on a surface facing it.
        ambient: Irradiance of the sky.
        zenith: Sky radiance overhead.
        horizon: Sky radiance at the horizon, also the colour of haze.
        cloud: Radiance of a lit cloud.
        cover: Share of the sky under clouds.
        haze: Extinction per metre.
        drift: Offset of the cloud pattern.
    """

    sun_direction: Tensor
    sun: Tensor
    ambient: Tensor
    zenith: Tensor
    horizon: Tensor
    cloud: Tensor
    cover: float
    haze: float
    drift: float


def make_light(look: DrawnLook, rng: np.random.Generator) -> Light:
    """The light of a drawn look."""
    zenith, horizon, cover, through = _SKIES[look.sky]
    elevation, azimuth = look.sun_elevation, look.sun_azimuth
    direction = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
    white, orange = np.array([1.0, 0.97, 0.92]), np.array([1.15, 0.72, 0.4])
    colour = white * (1 - look.sun_warmth) + orange * look.sun_warmth
    bright = 0.75 + 0.5 * look.ambient
    sky_tint = 0.5 * np.array(zenith) / np.mean(zenith) + 0.5 * np.array(horizon) / np.mean(horizon)
    ambient = look.ambient * (0.6 + 0.4 * sky_tint)
    warm = (1 - 0.35 * look.sun_warmth) + 0.35 * look.sun_warmth * colour

    def real(value: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(value, dtype=np.float32))

    return Light(
        sun_direction=real(np.array(direction)),
        sun=real(colour * look.sun_strength * through * 1.25),
        ambient=real(ambient * 1.15),
        zenith=real(np.array(zenith) * bright),
        horizon=real(np.array(horizon) * bright * warm),
        cloud=real(np.array([0.95, 0.95, 0.96]) * bright * (0.4 * warm + 0.6)),
        cover=float(np.clip(cover + rng.uniform(-0.12, 0.12), 0, 1)),
        haze=look.haze,
        drift=float(rng.uniform(0, 200)),
    )


def sky_radiance(light: Light, rays: Tensor, *, detail: bool = True) -> Tensor:
    """(n, 3) linear radiance of the sky along unit rays (n, 3); without detail no clouds and no sun."""
    up = rays[:, 2].clamp_min(0.0)
    base = torch.lerp(light.horizon, light.zenith, (up.sqrt() * 1.1).clamp(max=1.0)[:, None])
    if not detail:
        return base
    toward = (rays @ light.sun_direction).clamp_min(0.0)
    strength = light.sun.mean().clamp(max=1.0)
    glow = toward**8 * 0.25 + toward**64 * 0.5 + toward**1500 * 8.0
    x, y = (rays[:, k] / (up + 0.12) for k in (0, 1))
    shape = fractal_noise(x * 1.6 + light.drift, y * 1.6 + light.drift, 4)
    dense = ((shape - (0.78 - 0.5 * light.cover)) * 5.0).clamp(0, 1) * (up * 6).clamp(max=1.0)
    inner = fractal_noise(x * 3.1 + light.drift, y * 3.1 - light.drift, 2)
    cloud = light.cloud * (0.72 + 0.36 * inner)[:, None]
    sky = torch.lerp(base, cloud, dense[:, None] * 0.92)
    return sky + (glow * (1 - 0.8 * dense) * strength)[:, None] * light.sun / light.sun.mean().clamp_min(1e-3)
