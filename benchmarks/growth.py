"""How cost and memory grow: images (x1, x4, x16), resolution and batch, each row in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks.mpa_step import OurStep
from benchmarks.problem import CLASSES, QUICK, SMALL, Sizes, models, pictures
from benchmarks.timing import Row, Settings, interleaved, synchronise
from panoda.inference.prediction import predict_logits
from panoda.methods.parts.thresholds import ConfidenceHistogram, quantise
from panoda.system.machine import peak_memory, reset_peak_memory

IMAGES, HEIGHT, WIDTH = 2, 64, 256


def rows(settings: Settings) -> Iterator[Row]:
    """Pseudo-labels of more and more images; MPA steps of larger images and batches."""
    for times in (1, 4, 16):
        yield _alone(_pseudo_labels, IMAGES * times, settings)
    base = QUICK if settings.quick else SMALL
    for scale, batch in ((1, 1), (1, 2), (2, 1)):
        source, target = ((h * scale // 2, w * scale // 2) for h, w in (base.source, base.target))
        yield _alone(_steps, Sizes(source, target, batch), settings)


def _alone(function: Callable[..., Row], *arguments: object) -> Row:
    """The row of a function called in a new process: the peak of its memory is its own."""
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        return pool.submit(function, *arguments).result()


def _pseudo_labels(count: int, settings: Settings) -> Row:
    device = settings.device
    model = models(settings.seed, device)[0].eval()
    histogram = ConfidenceHistogram(CLASSES, device)
    before = _start(device)
    start = time.perf_counter()
    for number in range(count):
        image = pictures(1, (HEIGHT, WIDTH), number).to(device)
        with settings.autocast():
            logits = predict_logits(model, image, scales=(0.5, 1.0), wrap=True)
        confidence, label = logits.softmax(dim=1).max(dim=1)
        histogram.update(label, quantise(confidence))
    synchronise(device)
    seconds = time.perf_counter() - start
    return _row(f"pseudo-labels {WIDTH}x{HEIGHT}, {count} images", count, seconds, before, device)


def _steps(sizes: Sizes, settings: Settings) -> Row:
    before = _start(settings.device)
    step = OurStep(sizes, settings)
    seconds = interleaved({"ours": step}, repeats=settings.repeats, device=settings.device)["ours"]
    return _row(f"MPA step {sizes}", 2 * sizes.batch, seconds, before, settings.device)


def _row(what: str, images: int, seconds: float, before: float, device: torch.device) -> Row:
    return {
        "what": what,
        "seconds": seconds,
        "s/image": seconds / images,
        "peak MB above start": _memory(device) - before,
    }


def _memory(device: torch.device) -> float:
    """Peak so far in MB: of the GPU's allocations, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory() / 2**20


def _start(device: torch.device) -> float:
    """Memory in use now, in MB; the peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak_memory()
    return _memory(device)
