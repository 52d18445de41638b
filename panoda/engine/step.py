"""One optimiser step: gradients of a batch, whole or in micro-batches, guard, clip, step."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panoda.engine.accumulation import accumulate, batch_size, finer
from panoda.engine.distributed import Team
from panoda.engine.failures import explained, is_out_of_memory
from panoda.engine.guard import StepGuard
from panoda.engine.optim import gradient_norm
from panoda.engine.seeds import stream_seed
from panoda.engine.task import Task
from panoda.system.context import RunContext

log = logging.getLogger("panoda")


@dataclass
class Stepper:
    """Takes the steps of a run.

    Attributes:
        task: What is trained.
        optimizer: Over ``task.trained``.
        scaler: Of half precision.
        team: The processes that train together.
        guard: Looks at losses and gradient norms.
        context: Device, precision, what to do without memory.
        seed: Of the run; a step draws from (seed, step) alone.
        clip_norm: Gradient-norm limit; 0 = off.
        name: Of the stage, for messages.
        parts: Micro-batches of a batch; more after memory ran out, if ``context.on_oom`` says so.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    team: Team
    guard: StepGuard
    context: RunContext
    seed: int
    clip_norm: float
    name: str
    parts: int = 1

    def __call__(self, step: int, batch: Any) -> dict[str, Tensor]:
        """Take step ``step`` (from 0); returns its losses, gradient norm and what ``after_step`` adds.

        Raises:
            TrainingDiverged: a loss or gradient is not finite.
            OutOfMemory: the step does not fit, in micro-batches of one sample either.
            NotDeterministic: see ``panoda.engine.failures``.
        """
        with explained(lambda: self._what(step, batch), lambda: self._advice(batch)):
            values = self._fitting_gradients(step, batch)
            self.scaler.unscale_(self.optimizer)
            values["grad_norm"] = gradient_norm(self.task.trained.parameters(), self.clip_norm)
            self.guard.add(step + 1, self.task.describe(batch), values)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            late = self.task.after_step(step)
            self.guard.add_late(step + 1, self.task.describe(batch), late)
            return {k: v.detach() for k, v in {**values, **late}.items()}

    def _fitting_gradients(self, step: int, batch: Any) -> dict[str, Tensor]:
        """Gradients, in more micro-batches when memory runs out and the context allows it.

        Of several processes one that failed cannot go on: the others wait for it inside an exchange. There
        ``panoda.engine.launch`` starts all of them again.
        """
        if self.context.on_oom == "fail" or self.context.world > 1:
            return self._gradients(step, batch)
        while True:
            with self._as_before() as undo:
                try:
                    return self._gradients(step, batch)
                except (RuntimeError, MemoryError) as error:
                    more = finer(batch_size(batch), self.parts)
                    if not is_out_of_memory(error) or more is None:
                        raise
                    log.warning("%s; going on with %d micro-batches", self._what(step, batch), more)
                    undo()
            # Out here the error is gone, and with it what its frames held on the device.
            self.parts = more
            gc.collect()
            if self.context.device.type == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def _as_before(self) -> Iterator[Any]:
        """Yields what undoes the traces of an attempt: gradients, and buffers that the losses move."""
        buffers = [b for module in self._modules() for b in module.buffers()]
        before = [buffer.clone() for buffer in buffers]

        def undo() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)

        yield undo

    def _gradients(self, step: int, batch: Any) -> dict[str, Tensor]:
        seed = stream_seed(self.seed, "step", step)
        self.optimizer.zero_grad(set_to_none=True)
        if self.parts == 1:
            torch.manual_seed(seed)
            with self.context.autocast(), self.team.share():
                values = self.task.losses(step, batch)
            self.team.backward(self.scaler.scale(values["loss/total"]))
            return values

        def losses(micro: Any) -> dict[str, Tensor]:
            with self.context.autocast():
                return self.task.losses(step, micro)

        def backward(loss: Tensor, last: bool) -> None:
            # Gradients are exchanged with other processes once, when they are complete.
            scaled = self.scaler.scale(loss)
            self.team.backward(scaled) if last else scaled.backward()

        with self.team.whole_draws(self.task.trained):
            return accumulate(
                losses,
                backward,
                batch,
                parts=self.parts,
                share=self.team.own_share,
                modules=self._modules(),
                seed=seed,
            )

    def _modules(self) -> list[nn.Module]:
        return [part for part in self.task.components().values() if isinstance(part, nn.Module)]

    def _what(self, step: int, batch: Any) -> str:
        shapes = ", ".join(
            f"{len(b['image'])} images of {b['image'].shape[-2]} x {b['image'].shape[-1]}"
            for b in (batch if isinstance(batch, tuple) else (batch,))
            if isinstance(b, dict) and "image" in b
        )
        parts = f" in {self.parts} micro-batches" if self.parts > 1 else ""
        return f"stage {self.name}, step {step + 1}, {shapes or 'one batch'}{parts}, on {self.context.device}"

    def _advice(self, batch: Any) -> str:
        own, parts = f"{self.name}.batch_size", f"{self.name}.accumulate (now {self.parts})"
        advice = f"Lower {own} or the crop (crop_height, crop_width of its augmentation)"
        if self.context.on_oom == "accumulate":
            left = self.context.world > 1 and finer(batch_size(batch), self.parts)
            return advice if left else f"{advice}: smaller micro-batches are not left or do not help"
        advice += f", or raise {parts}: the batch stays and is computed in so many parts"
        return f"{advice}; runtime.on_oom: accumulate does so by itself"
