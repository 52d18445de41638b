"""Views of the embedded city for miniature trees: image and label come from the same rays.

A view shows what the city has; the raw values that it lacks lie on a card in its lower left, coloured by
value, so that every value of an encoding occurs and images still show their labels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from panoda.city.dataset import draw_pose
from panoda.city.film import draw_exposure
from panoda.city.looks import get_look
from panoda.city.render import render
from panoda.city.world import World, build_world
from panoda.config import CameraParams
from panoda.labels.spaces import generated_palette

SIZE = (64, 128)
LOOKS = ("northern", "harbour", "southern", "alpine")
CELL = 2
CARD_ROWS = 8


def pinhole(fov_x_deg: float, size: tuple[int, int] = SIZE) -> CameraParams:
    return CameraParams(projection="pinhole", height=size[0], width=size[1], fov_x_deg=fov_x_deg)


def panorama(lat_deg: float = 90.0, size: tuple[int, int] = SIZE) -> CameraParams:
    """A full circle between latitudes +-lat_deg."""
    return CameraParams(
        projection="erp", height=size[0], width=size[1], lat_top_deg=lat_deg, lat_bottom_deg=-lat_deg
    )


@functools.cache
def _world(number: int) -> World:
    return build_world(1 + number, get_look(LOOKS[number]))


@functools.cache
def view(seed: int, camera: CameraParams) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and cs19 label (H, W), both uint8 and read-only; rendered once in a process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the city renders serially; more threads only wait for each other
    try:
        world = _world(seed % len(LOOKS))
        random = np.random.default_rng(seed)
        spot = world.spots[seed // len(LOOKS) % len(world.spots)]
        pose = draw_pose(spot, random, level=camera.projection == "erp")
        image, label = render(
            world, camera, pose, exposure=draw_exposure(world.look.params, random), seed=seed
        )
    finally:
        torch.set_num_threads(threads)
    pair = image.numpy(), label.numpy()
    for array in pair:
        array.setflags(write=False)
    return pair


def scene(
    seed: int, camera: CameraParams, table: np.ndarray, choices: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """A view as a data set stores it.

    Args:
        seed: Which view.
        camera: Projection and size.
        table: (19,) raw value of every class of cs19.
        choices: Raw values on the card.

    Returns:
        Image (H, W, 3) uint8 and raw label (H, W) int64, the caller's own.
    """
    image, label = view(seed, camera)
    image, raw = image.copy(), table[label]
    add_card(image, raw, choices, seed)
    return image, raw


def add_card(image: np.ndarray, raw: np.ndarray, choices: Sequence[int], seed: int) -> None:
    """Write every choice into a cell of both, 8 to 16 rows above the lower edge."""
    rows = CARD_ROWS // CELL
    columns = -(-len(choices) // rows)
    card = np.resize(np.asarray(choices), rows * columns).reshape(rows, columns)
    card = card.repeat(CELL, axis=0).repeat(CELL, axis=1)
    place = slice(-2 * CARD_ROWS, -CARD_ROWS), slice(0, card.shape[1])
    raw[place], image[place] = card, picture(card, seed)


def values(seed: int, choices: Sequence[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) int64 in blocks of 8 x 8 that together hold every choice, as far as there are blocks."""
    random = np.random.default_rng(seed)
    blocks = (size[0] // 8) * (size[1] // 8)
    drawn = random.permutation(np.resize(np.asarray(choices), blocks)).reshape(size[0] // 8, size[1] // 8)
    return drawn.repeat(8, axis=0).repeat(8, axis=1)


def picture(raw: np.ndarray, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 image of raw values, one colour each, never black."""
    colours = np.array(generated_palette(254), dtype=np.int64) // 2 + 60
    noise = np.random.default_rng(seed).integers(-10, 11, (*raw.shape, 3))
    return np.clip(colours[raw % 254] + noise, 1, 255).astype(np.uint8)
