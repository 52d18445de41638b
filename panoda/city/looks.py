"""Looks of the embedded city: the built-in ones, and drawing one world's numbers from a look.

``northern`` and ``harbour`` (source) and ``southern``, ``evening``, ``desert``, ``monsoon`` and ``alpine``
(target) are for development: recipes may be chosen on them. ``smog``, ``lagoon`` and ``polar`` are for final
evaluation only; they differ from the others in palette, light and building style (``benchmarks/looks.py``
measures how far).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from panoda.config import LookParams, Range

SKIES = ("clear", "cloudy", "overcast", "sunset")
STYLES = ("plaster", "brick", "glass", "concrete", "timber")
PALETTES = ("pastel", "brick", "earth", "white", "grey", "vivid")
TREES = ("round", "conifer", "palm")

DEVELOPMENT_LOOKS = ("northern", "harbour", "southern", "evening", "desert", "monsoon", "alpine")
FINAL_LOOKS = ("smog", "lagoon", "polar")

LOOKS: dict[str, LookParams] = {
    "northern": LookParams(
        sun_elevation_deg=(28.0, 50.0),
        sun_strength=(0.85, 1.05),
        ambient=(0.38, 0.46),
        sky=("clear", "cloudy"),
        exposure_ev=(-0.1, 0.2),
        gamma=(0.95, 1.05),
        building_styles=("plaster", "plaster", "brick", "concrete"),
        palettes=("pastel", "white", "brick"),
        storeys=(3, 6),
        trees=("round",),
    ),
    "harbour": LookParams(
        sun_elevation_deg=(35.0, 60.0),
        sun_strength=(0.8, 1.0),
        ambient=(0.4, 0.5),
        sky=("cloudy", "clear"),
        haze_per_m=(0.001, 0.004),
        exposure_ev=(-0.1, 0.2),
        gamma=(0.95, 1.1),
        building_styles=("brick", "brick", "plaster", "glass"),
        palettes=("brick", "pastel", "grey"),
        storeys=(2, 7),
        trees=("round", "conifer"),
    ),
    "southern": LookParams(
        hue_shift_deg=(-12.0, 8.0),
        saturation=(1.0, 1.25),
        sun_elevation_deg=(16.0, 34.0),
        sun_strength=(0.95, 1.15),
        sun_warmth=(0.3, 0.55),
        ambient=(0.26, 0.34),
        sky=("clear", "cloudy"),
        haze_per_m=(0.006, 0.012),
        exposure_ev=(0.3, 0.65),
        gamma=(0.8, 0.9),
        white_balance=(0.3, 0.6),
        building_styles=("plaster", "concrete", "concrete"),
        palettes=("earth", "white", "vivid"),
        storeys=(2, 5),
        trees=("palm", "round", "round"),
        dryness=(0.3, 0.6),
        road_albedo=(0.12, 0.18),
    ),
    "evening": LookParams(
        saturation=(0.8, 1.0),
        sun_elevation_deg=(8.0, 16.0),
        sun_strength=(0.55, 0.75),
        sun_warmth=(0.5, 0.8),
        ambient=(0.36, 0.44),
        sky=("sunset", "cloudy"),
        haze_per_m=(0.004, 0.009),
        exposure_ev=(-0.45, -0.05),
        gamma=(1.0, 1.2),
        white_balance=(0.0, 0.3),
        noise=(0.01, 0.025),
        building_styles=("glass", "concrete", "brick"),
        palettes=("grey", "brick", "earth"),
        storeys=(3, 9),
        trees=("round", "conifer"),
        dryness=(0.1, 0.5),
        road_albedo=(0.06, 0.11),
    ),
    "desert": LookParams(
        hue_shift_deg=(0.0, 12.0),
        saturation=(0.8, 1.0),
        sun_elevation_deg=(45.0, 70.0),
        sun_strength=(1.1, 1.25),
        sun_warmth=(0.1, 0.25),
        ambient=(0.3, 0.38),
        sky=("clear",),
        haze_per_m=(0.006, 0.012),
        exposure_ev=(0.15, 0.5),
        gamma=(0.9, 1.1),
        white_balance=(0.2, 0.5),
        building_styles=("plaster",),
        palettes=("earth", "earth", "white"),
        storeys=(1, 3),
        trees=("palm",),
        dryness=(0.6, 0.9),
        road_albedo=(0.16, 0.22),
    ),
    "monsoon": LookParams(
        hue_shift_deg=(-10.0, 10.0),
        saturation=(0.9, 1.2),
        sun_elevation_deg=(40.0, 65.0),
        sun_strength=(0.0, 0.15),
        ambient=(0.62, 0.75),
        sky=("overcast",),
        haze_per_m=(0.008, 0.016),
        exposure_ev=(-0.4, 0.0),
        gamma=(1.0, 1.25),
        white_balance=(-0.35, -0.05),
        noise=(0.01, 0.02),
        building_styles=("concrete", "concrete", "timber", "glass"),
        palettes=("vivid", "grey"),
        storeys=(2, 8),
        trees=("palm", "round"),
        dryness=(0.0, 0.15),
        road_albedo=(0.05, 0.09),
    ),
    "alpine": LookParams(
        hue_shift_deg=(-5.0, 15.0),
        saturation=(0.85, 1.1),
        sun_elevation_deg=(14.0, 26.0),
        sun_strength=(0.9, 1.1),
        sun_warmth=(0.0, 0.15),
        ambient=(0.34, 0.42),
        sky=("clear", "cloudy"),
        haze_per_m=(0.0, 0.002),
        exposure_ev=(-0.2, 0.2),
        gamma=(1.15, 1.4),
        white_balance=(-0.7, -0.35),
        building_styles=("timber", "timber", "plaster"),
        palettes=("white", "earth"),
        storeys=(2, 4),
        trees=("conifer", "conifer", "round"),
        dryness=(0.0, 0.25),
        road_albedo=(0.08, 0.12),
    ),
    "smog": LookParams(
        hue_shift_deg=(-6.0, 10.0),
        saturation=(0.65, 0.9),
        sun_elevation_deg=(18.0, 36.0),
        sun_strength=(0.35, 0.55),
        sun_warmth=(0.35, 0.6),
        ambient=(0.4, 0.5),
        sky=("overcast", "cloudy"),
        haze_per_m=(0.01, 0.018),
        exposure_ev=(-0.6, -0.2),
        gamma=(1.1, 1.3),
        white_balance=(0.3, 0.6),
        noise=(0.012, 0.024),
        building_styles=("concrete", "brick", "glass"),
        palettes=("grey", "earth"),
        storeys=(4, 10),
        trees=("round",),
        dryness=(0.3, 0.7),
        road_albedo=(0.07, 0.12),
    ),
    "lagoon": LookParams(
        hue_shift_deg=(5.0, 25.0),
        saturation=(1.0, 1.3),
        sun_elevation_deg=(35.0, 55.0),
        sun_strength=(1.05, 1.2),
        sun_warmth=(0.05, 0.2),
        ambient=(0.34, 0.42),
        sky=("clear",),
        haze_per_m=(0.003, 0.007),
        exposure_ev=(0.2, 0.5),
        gamma=(0.8, 0.95),
        white_balance=(-0.45, -0.15),
        building_styles=("plaster", "timber"),
        palettes=("white", "vivid", "vivid"),
        storeys=(1, 4),
        trees=("palm", "palm", "round"),
        dryness=(0.1, 0.4),
        road_albedo=(0.14, 0.2),
    ),
    "polar": LookParams(
        hue_shift_deg=(-10.0, 5.0),
        saturation=(0.8, 1.05),
        sun_elevation_deg=(5.0, 12.0),
        sun_strength=(0.45, 0.65),
        sun_warmth=(0.2, 0.5),
        ambient=(0.32, 0.4),
        sky=("cloudy", "sunset"),
        haze_per_m=(0.002, 0.006),
        exposure_ev=(-0.4, 0.0),
        gamma=(1.05, 1.25),
        white_balance=(-0.6, -0.3),
        noise=(0.01, 0.022),
        building_styles=("timber", "concrete"),
        palettes=("vivid", "brick", "white"),
        storeys=(2, 5),
        trees=("conifer",),
        dryness=(0.4, 0.8),
        road_albedo=(0.05, 0.1),
    ),
}


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
        ValueError: no built-in look has that name, or the look names an unknown sky, style,
            palette or tree.
    """
    if params is None:
        if name not in LOOKS:
            raise ValueError(
                f"no built-in look is called {name!r}; known: {', '.join(LOOKS)}; or define its parameters"
            )
        params = LOOKS[name]
    for field, known in (
        ("sky", SKIES),
        ("building_styles", STYLES),
        ("palettes", PALETTES),
        ("trees", TREES),
    ):
        chosen = getattr(params, field)
        unknown = sorted(set(chosen) - set(known))
        if unknown or not chosen:
            found = ", ".join(unknown) or "nothing"
            raise ValueError(f"look {name}: {field} has {found}; expected some of {', '.join(known)}")
    if not 1 <= params.storeys[0] <= params.storeys[1]:
        raise ValueError(f"look {name}: storeys {params.storeys} must be two rising numbers from 1")
    return params


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
