"""Stochastic weight averaging (Izmailov et al., UAI 2018, arXiv 1803.05407) with torch's AveragedModel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_Norm = nn.modules.batchnorm._BatchNorm


class WeightAverage:
    """Running mean of a model's weights, taken every so many steps after a start.

    Attributes:
        averaged: torch's averaged model; its state is part of a resume point.
    """

    def __init__(self, model: nn.Module, *, start_step: int, every: int) -> None:
        """Average ``model`` after steps ``start_step + every``, ``start_step + 2 * every``, ..."""
        self.averaged = AveragedModel(model)
        self._source = model
        self._start_step, self._every = start_step, every

    @property
    def model(self) -> Any:
        """The model with averaged weights; its batch norms' statistics are those last seen."""
        return self.averaged.module

    @property
    def count(self) -> int:
        """Number of weights in the mean."""
        return int(self.averaged.n_averaged)

    def after_step(self, step: int) -> None:
        """Take the weights in, if it is their turn; ``step`` counts from 0."""
        since = step + 1 - self._start_step
        if since > 0 and since % self._every == 0:
            self.averaged.update_parameters(self._source)


def first_averaged_step(iterations: int, start: float) -> int:
    """Steps before averaging begins: a share of all of them, rounded down.

    Example:
        >>> first_averaged_step(1000, 0.75)
        750
    """
    return int(start * iterations)


@torch.no_grad()
def recompute_batch_norm(
    model: nn.Module, images: Iterable[Tensor], forward: Callable[[Tensor], Any] | None = None
) -> None:
    """Replace the statistics of every batch norm by their means over ``images``, in training mode.

    As ``torch.optim.swa_utils.update_bn``, except that a norm which sees no batch (that of a map pooled to
    one pixel in a batch of one) keeps its statistics instead of losing them.

    Args:
        forward: How the model is run; None = ``model(x)``.
    """
    norms = [m for m in model.modules() if isinstance(m, _Norm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.train()
    for norm in norms:
        norm.momentum = None  # cumulative: the first batch replaces what was there
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
    for batch in images:
        (forward or model)(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
