"""A whole city world from a seed and a look."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from panoda.city.looks import DrawnLook, draw_look
from panoda.city.plots import Site
from panoda.city.populate import Populator
from panoda.city.primitives import Frame, Scene
from panoda.city.shadows import occluder_height
from panoda.city.sky import Light, make_light
from panoda.city.streets import Street, StreetField, draw_network, street_field
from panoda.config import LookParams

SHADOW_EXTENT = 120.0
SHADOW_CELLS = 640
CANOPY_CELLS = 320


@dataclass(frozen=True)
class World:
    """Everything the renderer needs.

    Attributes:
        shadow: (S, S) height of the sun's occluders per ground cell, see ``occluder_height``.
        canopy: (C, C) height of whatever stands above each ground cell.
        spots: Free places on the lanes for cameras, nearest to the middle of the world first.
    """

    seed: int
    look: DrawnLook
    scene: Scene
    field: StreetField
    light: Light
    shadow: Tensor
    canopy: Tensor
    spots: tuple[Frame, ...]


def build_world(seed: int, look: LookParams) -> World:
    """Build the world of a seed.

    Rare things (trams, buses, lorries, motorcycles, ...) are spread over consecutive seeds so that
    a small split of neighbouring seeds holds every class.

    Args:
        look: How it looks; see ``panoda.city.looks.get_look``.

    Returns:
        The world; equal arguments give equal worlds.
    """
    rng = np.random.default_rng(seed)
    drawn = draw_look(look, rng)
    streets = draw_network(rng, tram=seed % 3 == 0)
    drawn = _sun_along(drawn, streets[0], rng)
    site = Site(streets, drawn, rng)
    site.fill_plots()
    populator = Populator(site, seed=seed)
    populator.fill()
    scene = site.kit.scene()
    light = make_light(drawn, rng)
    up = torch.tensor([0.0, 0.0, 1.0])
    return World(
        seed=seed,
        look=drawn,
        scene=scene,
        field=street_field(streets),
        light=light,
        shadow=occluder_height(scene, light.sun_direction, extent=SHADOW_EXTENT, cells=SHADOW_CELLS),
        canopy=occluder_height(scene, up, extent=SHADOW_EXTENT, cells=CANOPY_CELLS),
        spots=tuple(populator.camera_spots()),
    )


def _sun_along(look: DrawnLook, main: Street, rng: np.random.Generator) -> DrawnLook:
    """Turn the sun so that it usually reaches the main street instead of staying behind its houses."""
    heading = main.at(main.length / 2, 0.0).yaw
    aside = float(rng.choice([-1, 1])) * np.radians(float(rng.uniform(12, 65)))
    return replace(look, sun_azimuth=heading + float(rng.choice([0.0, np.pi])) + aside)
