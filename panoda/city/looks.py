"""Looks of the embedded city: the built-in ones (``looks.yaml``), and drawing one world's numbers from a look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from panoda.config import LookParams, Range
from panoda.system.files import read_yaml

STYLES = ("plaster", "brick", "glass", "concrete", "timber")
"""Facade styles; textures know them by their place."""
DEVELOPMENT_LOOKS = ("northern", "harbour", "southern", "evening", "desert", "monsoon", "alpine")
FINAL_LOOKS = ("smog", "lagoon", "polar")

LOOKS_FILE = Path(__file__).with_name("looks.yaml")


@cache
def built_in_looks() -> dict[str, LookParams]:
    """The built-in looks by name."""
    return {name: LookParams.model_validate(fields) for name, fields in read_yaml(LOOKS_FILE).items()}


@dataclass(frozen=True)
class DrawnLook:
    """The numbers of a look that hold for one whole world; angles in radians, RGB linear."""

    params: LookParams
    hue_shift: float
    saturation: float
    sun_elevation: float
    sun_azimuth: float
    sun_strength: float
    sun_warmth: float
    ambient: float
    sky: str
    haze: float
    dryness: float
    road_albedo: float

    @property
    def lamps_on(self) -> bool:
        """Whether windows, headlights and street lamps are lit."""
        return self.sun_elevation < np.radians(14.0) or self.sun_strength < 0.2


def get_look(name: str, params: LookParams | None = None) -> LookParams:
    """``params``, or the built-in look of that name when it is None.

    Raises:
        ValueError: no built-in look has that name.
    """
    looks = built_in_looks()
    if params is None and name not in looks:
        raise ValueError(
            f"no built-in look is called {name!r}; known: {', '.join(looks)}; or define its parameters"
        )
    return params or looks[name]


def draw_look(params: LookParams, rng: np.random.Generator) -> DrawnLook:
    """Draw one world's look."""

    def uniform(span: Range) -> float:
        return float(rng.uniform(*span))

    return DrawnLook(
        params=params,
        hue_shift=np.radians(uniform(params.hue_shift_deg)),
        saturation=uniform(params.saturation),
        sun_elevation=np.radians(max(uniform(params.sun_elevation_deg), 3.0)),
        sun_azimuth=float(rng.uniform(-np.pi, np.pi)),
        sun_strength=uniform(params.sun_strength),
        sun_warmth=uniform(params.sun_warmth),
        ambient=uniform(params.ambient),
        sky=params.sky[int(rng.integers(len(params.sky)))],
        haze=uniform(params.haze_per_m),
        dryness=uniform(params.dryness),
        road_albedo=uniform(params.road_albedo),
    )


_PALETTE_SRGB: dict[str, tuple[tuple[int, int, int], ...]] = {
    "pastel": ((226, 205, 160), (214, 190, 170), (196, 205, 190), (232, 220, 196), (205, 180, 140)),
    "brick": ((150, 82, 64), (128, 70, 56), (168, 104, 80), (120, 78, 66), (176, 124, 96)),
    "earth": ((200, 160, 112), (178, 132, 92), (214, 184, 140), (166, 116, 80), (190, 150, 120)),
    "white": ((236, 234, 228), (222, 220, 214), (240, 236, 222), (208, 206, 202)),
    "grey": ((150, 152, 154), (120, 124, 130), (172, 172, 168), (100, 104, 112)),
    "vivid": ((214, 120, 70), (90, 150, 160), (220, 180, 70), (190, 90, 100), (110, 160, 110)),
    "car": (
        (225, 226, 228), (160, 163, 168), (92, 96, 102), (24, 25, 28), (20, 38, 92), (140, 20, 24),
        (70, 90, 130), (200, 190, 165), (30, 72, 54), (196, 60, 30),
    ),
    "cloth": (
        (30, 34, 52), (60, 60, 64), (120, 30, 36), (40, 84, 60), (200, 196, 186), (180, 130, 60),
        (60, 90, 150), (150, 70, 110), (20, 20, 22), (210, 90, 40),
    ),
    "skin": ((236, 196, 168), (198, 150, 116), (150, 104, 76), (96, 64, 48)),
}  # fmt: skip


def palette_colour(
    look: DrawnLook, palette: str, rng: np.random.Generator, *, shift: bool = True
) -> tuple[float, float, float]:
    """A linear RGB colour of a palette, varied a little, under the look's hue shift and saturation."""
    choices = _PALETTE_SRGB[palette]
    base = choices[int(rng.integers(len(choices)))]
    tone, (dr, dg, db) = rng.uniform(0.88, 1.08), rng.normal(0, 0.012, 3)
    rgb = [min(max(v / 255 * tone + d, 0.02), 0.98) ** 2.2 for v, d in zip(base, (dr, dg, db), strict=True)]
    if shift:
        rgb = _turn_hue(rgb, look.hue_shift, look.saturation)
    r, g, b = (float(min(max(v, 0.005), 0.95)) for v in rgb)
    return r, g, b


def _turn_hue(rgb: list[float], angle: float, saturation: float) -> list[float]:
    """Rotate about the grey axis, then scale the distance from grey."""
    r, g, b = rgb
    grey = (r + g + b) / 3
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    cross = (b - g, r - b, g - r)
    return [grey + saturation * ((v - grey) * cos + k * sin) for v, k in zip(rgb, cross, strict=True)]
