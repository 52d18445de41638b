"""Dataset-level evaluation of one model on one prepared split: every image is predicted once and counted.

mIoU is the nan-mean over the classes that are labelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from panoda.data.loading.prepared import PreparedSplit
from panoda.evaluation.counts import CONFIDENCE_STEPS, Evaluation, PixelCounter
from panoda.geometry.views import Views
from panoda.inference.prediction import predict_logits
from panoda.inference.sliding import Sliding
from panoda.labels import IGNORE_INDEX
from panoda.system.background import read_ahead


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    split: PreparedSplit,
    *,
    num_classes: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    sliding: Sliding | None = None,
    views: Views | None = None,
    source_colours: float = 0.0,
    batch_size: int = 4,
    latitude_bands: int = 6,
    azimuth_sectors: int = 8,
    groups: Sequence[str] | None = None,
    keep: Sequence[int] = (),
    images: range | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Predict images of a split once and count.

    Args:
        model: Segmentation model; it is put into evaluation mode and moved to ``device``.
        split: Prepared images of one size; without labels only predictions are counted.
        scales: Image scales whose logits are averaged.
        flip: Also average the mirrored image.
        sliding: Window and stride of sliding windows, or None for whole images.
        views: Perspective views mixed in where the split is full circles, or None.
        source_colours: Weight of the images in the model's own colours; 0 = as they are alone.
        latitude_bands: Bands of equal angle (ERP only).
        azimuth_sectors: Sectors of equal width (full-circle ERP only).
        groups: Group of every image of the split, to count each group apart, too; None = do not.
        keep: Indices of images whose prediction and confidence are returned, if they are among ``images``.
        images: The images to count; None = all.

    Raises:
        ValueError: the split is empty, or keep names an image it does not have.
    """
    if len(split) == 0:
        raise ValueError(f"{split.folder}: the split holds no image; prepare at least one")
    if missing := [i for i in keep if not 0 <= i < len(split)]:
        raise ValueError(f"{split.folder}: pictures of images {missing} asked for, it has {len(split)}")
    device = torch.device(device)
    with torch.inference_mode(False):  # weights moved in inference mode could not be trained any more
        model = model.to(device).eval()
    counter = PixelCounter(split, num_classes, latitude_bands, azimuth_sectors)
    result = counter.result(groups)
    wrap = split.full_circle
    batches = _batches(split, range(len(split)) if images is None else images, batch_size)
    for indices, pixels, labels, valid in read_ahead(batches):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = predict_logits(
                model,
                pixels.to(device),
                scales=scales,
                flip=flip,
                wrap=wrap,
                sliding=sliding,
                views=views if wrap else None,
                band=split.band,
                source_colours=source_colours,
                valid=valid.to(device),
            )
        confidence, pred = logits.float().softmax(1).max(1)  # (B, H, W) each
        valid = valid.to(device)
        counted = labels.to(device).masked_fill(~valid, IGNORE_INDEX)
        counter.update(pred, counted)
        if groups is not None:
            for row, index in enumerate(indices):
                result.groups[groups[index]].update(pred[row], counted[row])
        result.predicted_pixels += torch.bincount(pred[valid], minlength=num_classes).cpu()
        result.confidence_sum += int((confidence[valid] * CONFIDENCE_STEPS).round().long().sum())
        result.images += len(indices)
        for row, index in enumerate(indices):
            if index in keep:
                result.predictions[index] = pred[row].to(torch.uint8).cpu()
                result.confidences[index] = (255 * confidence[row]).round().to(torch.uint8).cpu()
    return result


def _batches(
    split: PreparedSplit, images: range, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    for start in range(0, len(images), batch_size):
        indices = list(images[start : start + batch_size])
        samples = [split[i] for i in indices]
        yield (
            indices,
            torch.stack([s["image"] for s in samples]),
            torch.stack([s["label"] for s in samples]).long(),
            torch.stack([s["valid"] for s in samples]),
        )
