"""Pixel losses. Every function states its denominator and how ignored pixels enter.

Where a batch is split, denominators are those of the whole batch (``panoda.system.shares``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from panoda.labels import IGNORE_INDEX
from panoda.system.shares import denominator, gathered, summed


def class_weights(
    pixels: Tensor, *, kind: Literal["none", "enet", "sqrt_inverse"], cap: float = 10.0
) -> Tensor:
    """Class weights of a cross-entropy from training-split pixel counts.

    Args:
        pixels: (K,) labelled pixels per class.
        kind: ``enet`` = 1 / log(1.02 + p) (ENet, used by the released Trans4PASS code);
            ``sqrt_inverse`` = p^-1/2; ``none`` = ones. p is the class's share of labelled pixels.
        cap: largest weight after normalisation.

    Returns:
        (K,) float32, mean 1 over the classes that occur before capping; 0 for classes that never occur.
    """
    counts = pixels.to(torch.float64)
    seen = counts > 0
    if kind == "none":
        return torch.ones(counts.shape, dtype=torch.float32)
    share = counts / counts.sum().clamp(min=1)
    raw = 1.0 / torch.log(1.02 + share) if kind == "enet" else share.clamp(min=1e-12).rsqrt()
    raw = torch.where(seen, raw, torch.zeros_like(raw))
    normalised = raw / raw[seen].mean() if bool(seen.any()) else raw
    return normalised.clamp(max=cap).to(torch.float32)


def leave_out(logits: Tensor, lacking: Tensor | None, where: Tensor | None = None) -> Tensor:
    """Logits whose softmax leaves out the classes that the labels cannot name.

    For labels of a source that does not annotate every class: the loss then says nothing about the others.

    Args:
        logits: (B, K, H, W).
        lacking: (B, K) bool, True for classes that an image's source does not annotate; None = none.
        where: (B, H, W) bool, the pixels that come from that source; None = all.

    Returns:
        (B, K, H, W), minus infinity at what is left out.
    """
    if lacking is None:
        return logits
    mask = lacking.to(logits.device)[:, :, None, None]
    return logits.masked_fill(mask if where is None else mask & where[:, None], float("-inf"))


def cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy over labelled pixels.

    Denominator: the number of labelled pixels, or the sum of their labels' class weights when ``weight`` is
    given, with and without smoothing, as in torch. Ignored pixels enter neither sum.
    A batch without any labelled pixel gives 0 with zero gradients, never NaN.

    Args:
        logits: (B, K, H, W); classes at minus infinity (``leave_out``) take no share of a smoothed target.
        label: (B, H, W) int64, 255 = ignored.
        weight: (K,) class weights; each class's share of a smoothed target has the weight of that class.
        label_smoothing: Share of a pixel's target spread evenly over all K classes (Szegedy et al. 2016).
    """
    # CUDA adds pixels in any order; it has a deterministic way without that sum alone.
    apart = logits.is_cuda and torch.are_deterministic_algorithms_enabled()
    total = F.cross_entropy(
        logits.float(),
        label,
        weight=weight,
        ignore_index=IGNORE_INDEX,
        reduction="none" if apart else "sum",
    ).sum()
    labelled = label != IGNORE_INDEX
    if label_smoothing:
        every = F.log_softmax(logits.float(), dim=1)  # (B, K, H, W)
        every = torch.where(every.isneginf() | ~labelled[:, None], 0.0, every)
        # Not einsum: autocast would sum it in half precision, which overflows.
        spread = every if weight is None else every * weight[:, None, None]
        total = (1 - label_smoothing) * total - label_smoothing / logits.shape[1] * spread.sum()
    if weight is None:
        return total / denominator(labelled.sum())
    mass = (weight[label.clamp(max=logits.shape[1] - 1)] * labelled).sum()
    return total / denominator(mass)


def auxiliary_cross_entropy(
    auxiliary: Sequence[tuple[float, Tensor]],
    label: Tensor,
    weight: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    lacking: Tensor | None = None,
) -> Tensor:
    """Weighted sum of the cross-entropies of a decoder's auxiliary heads; 0 without heads.

    ``auxiliary`` is (loss weight, logits (B, K, H, W)) of every head; the rest is that of the functions above.
    """
    terms = [
        share * cross_entropy(leave_out(logits, lacking), label, weight, label_smoothing=label_smoothing)
        for share, logits in auxiliary
    ]
    return torch.stack(terms).sum() if terms else torch.zeros((), device=label.device)


def ohem_cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    threshold: float,
    min_kept: float,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy over hard pixels only (online hard example mining, Shrivastava et al. 2016).

    Hard = the true class's probability is below ``threshold``; when fewer than ``min_kept`` of the labelled
    pixels are hard, the hardest ones fill up. Denominator: as in ``cross_entropy``, over kept pixels.

    Args:
        threshold: probability in 0..1.
        min_kept: share of labelled pixels in 0..1 that is kept at least.
        label_smoothing: As the rest in ``cross_entropy``; which pixels are hard does not depend on it.
    """
    with torch.no_grad():
        labelled = label != IGNORE_INDEX
        safe = torch.where(labelled, label, torch.zeros_like(label))
        true_prob = logits.float().softmax(dim=1).gather(1, safe[:, None])[:, 0]
        ranked = gathered(torch.where(labelled, true_prob, torch.full_like(true_prob, 2.0)).flatten())
        ranked = ranked.sort().values
        kept = (summed(labelled.sum()) * min_kept).long().clamp(min=1, max=ranked.numel())
        # take, because an index that is a scalar tensor is read back by the host.
        limit = ranked.take(kept - 1).clamp(min=threshold)
        hard = labelled & (true_prob <= limit)
        target = torch.where(hard, label, torch.full_like(label, IGNORE_INDEX))
    return cross_entropy(logits, target, weight, label_smoothing=label_smoothing)
