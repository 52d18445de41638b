"""Pseudo-labels per image: ours beside one image and one scale at a time with every map held."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.problem import PUBLISHED, QUICK, SMALL, models, pictures
from benchmarks.reference.labels import pseudo_labels as reference_labels
from benchmarks.timing import Row, Settings, count_flops, interleaved, peak_flops
from panoda.inference.prediction import predict_logits
from panoda.methods.parts.thresholds import ConfidenceHistogram, quantise

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
QUANTILE, CAP, IMAGES = 0.5, 0.9, 2


def rows(settings: Settings) -> Iterator[Row]:
    """One row: six scales, mirrored too, without the margins that close the circle (both sides)."""
    sizes = QUICK if settings.quick else PUBLISHED if settings.published else SMALL
    device = settings.device
    model, plain = (m.eval() for m in models(settings.seed, device))
    images = pictures(IMAGES, sizes.target, settings.seed)
    scales = SCALES[:2] if settings.quick else SCALES
    if settings.compile:
        model.compile()

    def ours() -> list[torch.Tensor]:
        histogram = ConfidenceHistogram(model.num_classes, device)
        with settings.autocast():
            logits = predict_logits(model, images.to(device), scales=scales, flip=True, wrap=False)
        confidence, label = logits.softmax(dim=1).max(dim=1)
        level = quantise(confidence)
        histogram.update(label, level)
        limits = histogram.thresholds(quantile=QUANTILE, cap=CAP)
        return list(limits.apply(label.to(torch.uint8), level).cpu())

    def reference() -> object:
        held = [image.to(device) for image in images]
        return reference_labels(plain, held, scales, quantile=QUANTILE, cap=CAP)

    seconds = interleaved({"ours": ours, "reference": reference}, repeats=settings.repeats, device=device)
    flops = count_flops(reference)
    peak = peak_flops(device, settings.dtype or torch.float32)
    yield {
        "image": f"{sizes.target[1]}x{sizes.target[0]}, {len(scales)} scales, flipped",
        "ours s/image": seconds["ours"] / IMAGES,
        "reference s/image": seconds["reference"] / IMAGES,
        "ratio": seconds["reference"] / seconds["ours"],
        "GFLOP/image": flops / IMAGES / 1e9,
        "share of peak": flops / seconds["ours"] / peak,
    }
