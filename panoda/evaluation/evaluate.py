"""Dataset-level evaluation of one model on one prepared split: every image is predicted once and counted.

mIoU is the nan-mean over the classes that are labelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panoda.data.loading.prepared import PreparedSplit
from panoda.evaluation.counts import Evaluation
from panoda.inference.prediction import predict_logits
from panoda.system.background import read_ahead


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    split: PreparedSplit,
    result: Evaluation,
    *,
    batch_size: int = 4,
    keep: Sequence[int] = (),
    images: range | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    **prediction: Any,
) -> Evaluation:
    """Predict images of a split once and count them into ``result``.

    Args:
        model: Segmentation model; it is put into evaluation mode and moved to ``device``.
        split: Prepared images of one size; without labels only predictions are counted.
        keep: Indices of images whose prediction and confidence are kept, if they are among ``images``.
        images: The images to count; None = all.
        dtype: Autocast type, or None.
        prediction: Scales, flip and the like, as in ``predict_logits``.

    Raises:
        ValueError: the split is empty.
    """
    if len(split) == 0:
        raise ValueError(f"{split.folder}: the split holds no image; prepare at least one")
    device = torch.device(device)
    with torch.inference_mode(False):  # weights moved in inference mode could not be trained any more
        model = model.to(device).eval()
    prediction |= {"wrap": split.full_circle, "band": split.band}
    batches = _batches(split, range(len(split)) if images is None else images, batch_size)
    for indices, pixels, label, valid in read_ahead(batches):
        valid = valid.to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = predict_logits(model, pixels.to(device), valid=valid, **prediction)
        result.update(indices, logits, label.to(device), valid, keep=keep)
    return result


def _batches(
    split: PreparedSplit, images: range, batch_size: int
) -> Iterator[tuple[range, Tensor, Tensor, Tensor]]:
    for start in range(0, len(images), batch_size):
        indices = images[start : start + batch_size]
        samples = [split[i] for i in indices]
        yield (
            indices,
            torch.stack([s["image"] for s in samples]),
            torch.stack([s["label"] for s in samples]).long(),
            torch.stack([s["valid"] for s in samples]),
        )
