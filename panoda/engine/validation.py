"""Source validation during training.

Always on whole images at one scale, whatever the evaluation stage does: it compares weights of one run.
"""

from __future__ import annotations

import torch
from torch import nn

from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.distributed import gather
from panoda.inference.metrics import ConfusionMatrix
from panoda.inference.prediction import predict_logits
from panoda.system.context import RunContext


def validate_split(
    model: nn.Module, split: PreparedSplit, *, batch_size: int, context: RunContext
) -> ConfusionMatrix:
    """Single-scale confusion matrix of a labelled split; the model's mode is restored.

    Several processes share the batches; pixels are counted, so every one of them gets the same matrix.
    """
    space = split.space
    matrix = ConfusionMatrix(space.num_classes)
    for start in range(context.rank * batch_size, len(split), context.world * batch_size):
        samples = [split[i] for i in range(start, min(start + batch_size, len(split)))]
        images = torch.stack([s["image"] for s in samples]).to(context.device)
        logits = predict_logits(model, images, wrap=split.full_circle, dtype=context.dtype)
        matrix.update(logits.argmax(dim=1).cpu(), torch.stack([s["label"] for s in samples]))
    total = ConfusionMatrix(space.num_classes)
    for one in gather(matrix, context):
        total.matrix += one.matrix
    return total
