"""Pseudo-labels at several scales: one image and one scale at a time, every map of the data set held."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def logits_of(model: nn.Module, image: Tensor, scales: Sequence[float]) -> Tensor:
    """Mean logits (K, H, W) of one uint8 image (3, H, W) over scales and both directions, no wrapping."""
    height, width = image.shape[1:]
    total = torch.zeros(())
    with torch.no_grad():
        for scale in scales:
            size = [max(8, round(side * scale / 4)) * 4 for side in (height, width)]
            size = [height, width] if scale == 1 else size
            resized = transforms.resize(image, size, antialias=True) if scale != 1 else image
            view = transforms.normalize(resized[None].float() / 255, list(MEAN), list(STD))
            for mirrored in (False, True):
                logits, _ = model(view.flip(-1) if mirrored else view)
                logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
                total = total + (logits.flip(-1) if mirrored else logits)
    return total[0] / (2 * len(scales))


def pseudo_labels(
    model: nn.Module, images: Sequence[Tensor], scales: Sequence[float], *, quantile: float, cap: float
) -> list[np.ndarray]:
    """Labels (H, W) uint8 of all images, those below their class's threshold set to 255."""
    labels, confidences = [], []
    for image in images:
        probability, label = F.softmax(logits_of(model, image, scales), dim=0).max(dim=0)
        labels.append(label.cpu().numpy())
        confidences.append(probability.cpu().numpy())
    every_label, every_confidence = np.stack(labels), np.stack(confidences)
    for k in np.unique(every_label):
        own = np.sort(every_confidence[every_label == k])
        limit = min(own[min(int(len(own) * quantile), len(own) - 1)], cap)
        every_label[(every_label == k) & (every_confidence < limit)] = 255
    return [label.astype(np.uint8) for label in every_label]
