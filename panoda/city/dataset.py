"""Writing an embedded-city data set: images, labels and poses of all splits, over all cores."""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from panoda.city.film import Exposure, draw_exposure
from panoda.city.looks import get_look
from panoda.city.primitives import Frame
from panoda.city.render import Pose, render
from panoda.city.world import World, build_world
from panoda.config import CameraParams, CityDataset, LookParams
from panoda.system.background import end_with_parent
from panoda.system.files import staged_directory
from panoda.system.machine import cores
from panoda.system.progress import progress_bar


@dataclass(frozen=True)
class WorldJob:
    """All images of one world: a unit of work for one process."""

    folder: str
    first: int
    count: int
    seed: int
    look_name: str
    look: LookParams
    camera: CameraParams
    labels: bool


def write_city(out: Path, params: CityDataset, *, progress: bool, workers: int = 0) -> None:
    """Render all splits.

    Writes ``<split>/images/<id>.png``, ``<split>/labels/<id>.png`` (8-bit train ids; no such folder
    where the split has ``labels: false``) and ``<split>/meta.csv``. World i of a split has seed
    ``seed + i`` and look ``i`` modulo the number of looks. Bytes depend on ``params`` alone, never
    on ``workers``. The folder appears complete or not at all.

    Args:
        workers: Processes; 0 = one per core.

    Raises:
        ValueError: no looks or splits, or an unknown look.
    """
    if not params.looks or not params.splits:
        raise ValueError(
            "the city needs at least one look and one split; give data.*.dataset.looks and splits"
        )
    looks = [(name, get_look(name, look)) for name, look in params.looks.items()]
    with staged_directory(out) as aside:
        jobs = [job for split in params.splits for job in _jobs(aside, params, split, looks)]
        rows: dict[str, list[dict[str, str]]] = {split: [] for split in params.splits}
        with progress_bar(enabled=progress) as bar:
            task = bar.add_task("rendering the city", total=sum(job.count for job in jobs))
            for job, written in zip(jobs, _run(jobs, workers or cores()), strict=True):
                rows[Path(job.folder).name].extend(written)
                bar.advance(task, job.count)
        for split, lines in rows.items():
            with (aside / split / "meta.csv").open("w", newline="", encoding="utf-8") as handle:
                writer = csv.DictWriter(handle, list(lines[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)


def _jobs(
    aside: Path, params: CityDataset, split: str, looks: list[tuple[str, LookParams]]
) -> Iterator[WorldJob]:
    wanted = params.splits[split]
    folder = aside / split
    (folder / "images").mkdir(parents=True)
    if wanted.labels:
        (folder / "labels").mkdir()
    for world, first in enumerate(range(0, wanted.images, params.images_per_world)):
        name, look = looks[world % len(looks)]
        count = min(params.images_per_world, wanted.images - first)
        seed = wanted.seed + world
        yield WorldJob(str(folder), first, count, seed, name, look, params.camera, wanted.labels)


def _run(jobs: list[WorldJob], workers: int) -> Iterable[list[dict[str, str]]]:
    """Results in the order of jobs."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from _serial(jobs)
        return
    # spawn: a forked child of a process with torch threads can hang.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_begin_worker) as pool:
        yield from pool.imap(render_job, jobs)


def _serial(jobs: list[WorldJob]) -> Iterator[list[dict[str, str]]]:
    threads = torch.get_num_threads()
    try:
        for job in jobs:
            torch.set_num_threads(1)
            yield render_job(job)
    finally:
        torch.set_num_threads(threads)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    end_with_parent()  # what is left would write where the next run cleans up


def render_job(job: WorldJob) -> list[dict[str, str]]:
    """Render and write the images of one world; returns their meta.csv rows."""
    world = build_world(job.seed, job.look)
    rng = np.random.default_rng((job.seed, 1))
    spots = pick_spots(world, job.count, rng)
    rows = []
    for k, spot in enumerate(spots):
        pose = draw_pose(spot, rng, level=job.camera.projection == "erp")
        exposure = draw_exposure(job.look, rng)
        image, label = render(world, job.camera, pose, exposure=exposure, seed=job.seed * 1000 + k)
        name = f"{job.first + k:05d}"
        folder = Path(job.folder)
        Image.fromarray(image.numpy()).save(folder / "images" / f"{name}.png", compress_level=4)
        if job.labels:
            Image.fromarray(label.numpy()).save(folder / "labels" / f"{name}.png")
        rows.append(_row(name, job, world, pose, exposure))
    return rows


def _row(name: str, job: WorldJob, world: World, pose: Pose, exposure: Exposure) -> dict[str, str]:
    numbers = {
        "x": pose.x,
        "y": pose.y,
        "z": pose.z,
        "yaw_deg": math.degrees(pose.yaw),
        "pitch_deg": math.degrees(pose.pitch),
        "roll_deg": math.degrees(pose.roll),
        "exposure_ev": exposure.ev,
        "gamma": exposure.gamma,
        "white_balance": exposure.white_balance,
        "noise": exposure.noise,
        "sun_elevation_deg": math.degrees(world.look.sun_elevation),
    }
    texts = {key: f"{value:.4f}" for key, value in numbers.items()}
    return {"id": name, "world_seed": str(job.seed), "look": job.look_name, **texts}


def pick_spots(world: World, count: int, rng: np.random.Generator) -> list[Frame]:
    """Camera places spread over the world: a random start, then the farthest from those chosen."""
    spots = world.spots
    points = np.array([[s.x, s.y] for s in spots])
    # The main street's first tens of metres hold the rare things; start there.
    first = int(rng.integers(min(len(spots), 10)))
    chosen = [first]
    distance = np.hypot(*(points - points[first]).T)
    while len(chosen) < count:
        reach = np.where(distance > 45, 45 - 0.1 * distance, distance) + rng.uniform(0, 12, len(spots))
        pick = int(reach.argmax())
        chosen.append(pick)
        distance = np.minimum(distance, np.hypot(*(points - points[pick]).T))
    return [spots[k] for k in chosen]


def draw_pose(spot: Frame, rng: np.random.Generator, *, level: bool) -> Pose:
    """A camera on a spot: 1.6 to 2.2 m high, roughly along the traffic; panoramas stay level."""
    tilt = 0.3 if level else 1.2
    turn = rng.normal(0, 4) if level or rng.random() < 0.75 else rng.uniform(-40, 40)
    return Pose(
        x=spot.x + float(rng.uniform(-0.4, 0.4)),
        y=spot.y + float(rng.uniform(-0.4, 0.4)),
        z=float(rng.uniform(1.6, 2.2)),
        yaw=spot.yaw + math.radians(float(turn)),
        pitch=math.radians(float(rng.normal(0, tilt))),
        roll=math.radians(float(rng.normal(0, tilt / 2))),
    )
