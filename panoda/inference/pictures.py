"""Pictures of fixed images of a split: which ones, and what a model predicts on them."""

from __future__ import annotations

import numpy as np
from torch import nn

from panoda.data.loading.prepared import PreparedSplit
from panoda.inference.prediction import predict_logits
from panoda.system.context import RunContext


def prediction_picture(model: nn.Module, split: PreparedSplit, index: int, context: RunContext) -> np.ndarray:
    """(H', W, 3) uint8: input, truth where there is one, and prediction, from top to bottom."""
    sample = split[index]
    image = sample["image"][None].to(context.device)
    logits = predict_logits(model, image, wrap=split.full_circle, dtype=context.dtype)
    space = split.space
    rows = [sample["image"].permute(1, 2, 0).numpy()]
    if split.has_labels:
        rows.append(space.colourise(sample["label"].numpy()))
    rows.append(space.colourise(logits.argmax(dim=1)[0].cpu().numpy()))
    return np.concatenate(rows, axis=0)


def picture_indices(length: int, count: int) -> list[int]:
    """``count`` indices spread evenly over a split; the same ones every time."""
    return sorted({int(i) for i in np.linspace(0, length - 1, min(count, length))})
