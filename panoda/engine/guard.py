"""The guard: a loss or gradient that is not finite ends the run; no step waits for the device to be checked.

On the CPU every step is checked before it is taken. On a GPU reading a value would make the host wait in
every step, so the values stay there and are looked at together: at log points, before anything is kept
(resume point, validation, result) and after ``PENDING`` steps at the latest. Steps after a bad one are
computed in vain then, and none of them is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from panoda.engine.spikes import LossSpikes

PENDING = 100


class TrainingDiverged(ValueError):
    """A loss or gradient is not finite; nothing of that step or later ones is kept."""


@dataclass(frozen=True)
class _Step:
    number: int
    samples: str
    values: dict[str, Tensor]
    watched: tuple[str, ...]


class StepGuard:
    """Checks losses and gradient norms, and hands the losses on to the report of spikes."""

    def __init__(self, *, lag: bool, scaler: torch.amp.GradScaler, spikes: LossSpikes) -> None:
        """Check.

        Args:
            lag: Steps are checked together, when ``check`` is called, instead of one by one.
            scaler: Of half precision: it skips steps whose gradients overflow and lowers its scale; only at
                a scale below 1 such a gradient is an error.
            spikes: Receives every finite loss.
        """
        self._lag, self._scaler, self._spikes = lag, scaler, spikes
        self._pending: list[_Step] = []

    def add(self, number: int, samples: str, values: Mapping[str, Tensor]) -> None:
        """Take note of step ``number`` (from 1); ``values`` has ``loss/total`` and ``grad_norm``.

        Raises:
            TrainingDiverged: from ``check``.
        """
        self._note(number, samples, values, ("loss/total", "grad_norm"))

    def add_late(self, number: int, samples: str, values: Mapping[str, Tensor]) -> None:
        """Take note of what step ``number`` gave after it was taken, such as the discriminator's loss.

        Raises:
            TrainingDiverged: from ``check``.
        """
        if values:
            self._note(number, samples, values, tuple(values))

    def _note(
        self, number: int, samples: str, values: Mapping[str, Tensor], watched: tuple[str, ...]
    ) -> None:
        kept = {name: value.detach() for name, value in values.items()}
        self._pending.append(_Step(number, samples, kept, watched))
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
        found = iter(torch.stack([s.values[name].float() for s in steps for name in s.watched]).tolist())
        for step in steps:
            values = {name: next(found) for name in step.watched}
            for name, value in values.items():
                if not math.isfinite(value) and not (name == "grad_norm" and self._overflow()):
                    raise TrainingDiverged(_message(name, value, step))
            if "loss/total" in values:
                self._spikes.add(step.number, values["loss/total"], step.samples)

    def _overflow(self) -> bool:
        return self._scaler.is_enabled() and self._scaler.get_scale() >= 1.0


def _message(name: str, value: float, step: _Step) -> str:
    what = {"loss/total": "loss", "grad_norm": "gradient norm"}.get(name, name)
    terms = ", ".join(f"{name} {float(value):.4g}" for name, value in step.values.items())
    return (
        f"{what} is {value} at step {step.number} ({terms}); batch: {step.samples}. Nothing of this step is "
        "kept, and the last resume point is from before it. Lower the learning rate, set clip_norm, or look "
        "at these images."
    )
