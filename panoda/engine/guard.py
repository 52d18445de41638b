"""The guard: a loss or gradient that is not finite ends the run; no step waits for the device to be checked.

On the CPU every step is checked before it is taken. On a GPU reading a value would make the host wait in
every step, so the values stay there and are looked at together: at log points, before anything is kept
(resume point, validation, result) and after ``PENDING`` steps at the latest. Steps after a bad one are
computed in vain then, and none of them is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from panoda.engine.spikes import LossSpikes

PENDING = 100
WATCHED = ("loss/total", "grad_norm")


class TrainingDiverged(ValueError):
    """A loss or gradient is not finite; nothing of that step or later ones is kept."""


class StepGuard:
    """Checks losses and gradient norms, and hands the losses on to the report of spikes."""

    def __init__(self, *, lag: bool, scaler: torch.amp.GradScaler, spikes: LossSpikes) -> None:
        """Check.

        Args:
            lag: Steps are checked together, when ``check`` is called, instead of one by one.
            scaler: Skips steps whose gradients overflow and lowers its scale; only below 1 they are an error.
            spikes: Receives every finite loss.
        """
        self._lag, self._scaler, self._spikes = lag, scaler, spikes
        self._pending: list[tuple[int, str, dict[str, Tensor], tuple[str, ...]]] = []

    def add(
        self, number: int, samples: str, values: Mapping[str, Tensor], watched: Sequence[str] = WATCHED
    ) -> None:
        """Take note of what step ``number`` (from 1) gave; the values that are ``watched`` must be finite.

        Raises:
            TrainingDiverged: from ``check``.
        """
        kept = {name: value.detach() for name, value in values.items()}
        self._pending.append((number, samples, kept, tuple(watched)))
        if not self._lag or len(self._pending) >= PENDING:
            self.check()

    def check(self) -> None:
        """Look at all steps since the last time; one transfer from the device.

        Raises:
            TrainingDiverged: names the first bad step, its losses and its samples.
        """
        steps, self._pending = self._pending, []
        if not steps:
            return
        found = iter(
            torch.stack([given[n].float() for *_, given, watched in steps for n in watched]).tolist()
        )
        for number, samples, given, watched in steps:
            values = {name: next(found) for name in watched}
            for name, value in values.items():
                overflow = (
                    name == "grad_norm" and self._scaler.is_enabled() and self._scaler.get_scale() >= 1.0
                )
                if not math.isfinite(value) and not overflow:
                    what = {"loss/total": "loss", "grad_norm": "gradient norm"}.get(name, name)
                    terms = ", ".join(f"{term} {float(one):.4g}" for term, one in given.items())
                    raise TrainingDiverged(
                        f"{what} is {value} at step {number} ({terms}); batch: {samples}. Nothing of this step is "
                        "kept, and the last resume point is from before it. Lower the learning rate, set clip_norm, "
                        "or look at these images."
                    )
            if "loss/total" in values:
                self._spikes.add(number, values["loss/total"], samples)
