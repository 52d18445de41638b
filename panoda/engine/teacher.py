"""The mean teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv 1703.01780)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from panoda.data.loading.transforms import normalise


class Teacher(AveragedModel):
    """Moving average of a model's weights and buffers, in evaluation mode.

    torch's averaged model sends its count of updates to the device at each of them, for rules that use it,
    and the host waits; the moving average does not use it.
    """

    def __init__(self, model: nn.Module, *, momentum: float) -> None:
        """Copy ``model``; an update keeps ``momentum`` of the average."""
        super().__init__(model, use_buffers=True)
        self._average = get_ema_multi_avg_fn(momentum)
        self.eval()

    @torch.no_grad()
    def relabel(
        self,
        image: Tensor,
        label: Tensor,
        valid: Tensor,
        threshold: float,
        *,
        versions: Sequence[tuple[float, Tensor]] = (),
    ) -> Tensor:
        """The teacher's labels where it is sure.

        Args:
            image: (B, 3, H, W) in 0..1.
            label: (B, H, W) int64 of the other pixels.
            valid: (B, H, W) bool; pixels where it is False keep ``label``.
            threshold: Confidence from which on the teacher is sure, in 0..1.
            versions: (weight, image) of the same pixels in other colours: the mean probability counts, in which
                ``image`` has weight 1.
        """
        total = self.module(normalise(image)).float().softmax(dim=1)
        for weight, other in versions:
            total = total + weight * self.module(normalise(other)).float().softmax(dim=1)
        confidence, own = (total / (1 + sum(weight for weight, _ in versions))).max(dim=1)
        return torch.where((confidence >= threshold) & valid, own, label)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights in; the first update copies them."""
        groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for own, new in zip(_tensors(self.module), _tensors(model), strict=True):
            own, new = own.detach(), new.detach()
            averaged, current = groups[own.dtype, type(own)]  # sharded weights are tensors of their own type
            averaged.append(own)
            current.append(new)
        first = int(self.n_averaged) == 0
        for averaged, current in groups.values():
            if first:
                for own, new in zip(averaged, current, strict=True):
                    own.copy_(new)
            else:
                self._average(averaged, current, self.n_averaged)
        self.n_averaged += 1


def _tensors(module: nn.Module) -> chain[Tensor]:
    return chain(module.parameters(), module.buffers())
