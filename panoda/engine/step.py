"""One optimiser step: gradients of a batch, whole or in micro-batches, guard, clip, step."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from panoda.engine.accumulation import Losses, accumulate, batch_size, finer
from panoda.engine.distributed import own_shard
from panoda.engine.failures import explained, is_out_of_memory
from panoda.engine.guard import StepGuard
from panoda.engine.optim import gradient_norm
from panoda.engine.parallel import parallel_losses, sample_for_full_batch
from panoda.engine.seeds import stream_seed
from panoda.engine.task import Task
from panoda.system.context import RunContext
from panoda.system.shares import batch_shard

log = logging.getLogger("panoda")


@dataclass
class Stepper:
    """Takes the steps of a run.

    Attributes:
        seed: Of the run; a step draws from (seed, step) alone.
        clip_norm: Gradient-norm limit; 0 = off.
        parts: Micro-batches of a batch; more after memory ran out, if ``context.on_oom`` says so.
        losses: Those of the task, in parallel with other processes.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    guard: StepGuard
    context: RunContext
    seed: int
    clip_norm: float
    name: str
    parts: int = 1
    losses: Losses = field(init=False)

    def __post_init__(self) -> None:
        self.losses = parallel_losses(self.task, self.context)

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
            if late:
                self.guard.add(step + 1, self.task.describe(batch), late, watched=tuple(late))
            return {k: v.detach() for k, v in {**values, **late}.items()}

    def _fitting_gradients(self, step: int, batch: Any) -> dict[str, Tensor]:
        """Gradients, in more micro-batches when memory runs out and the context allows it.

        Of several processes one that failed cannot go on: the others wait for it inside an exchange. There
        ``panoda.engine.launch`` starts all of them again.
        """
        if self.context.on_oom == "fail" or self.context.world > 1:
            return self._gradients(step, batch)
        while True:
            before = [(b, b.clone()) for module in self._modules() for b in module.buffers()]
            try:
                return self._gradients(step, batch)
            except (RuntimeError, MemoryError) as error:
                more = finer(batch_size(batch), self.parts)
                if not is_out_of_memory(error) or more is None:
                    raise
                log.warning("%s; going on with %d micro-batches", self._what(step, batch), more)
            # Out here the error is gone, and with it what its frames held on the device.
            for buffer, value in before:
                buffer.copy_(value)
            self.optimizer.zero_grad(set_to_none=True)
            self.parts = more
            gc.collect()
            if self.context.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradients(self, step: int, batch: Any) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        seed, shard = stream_seed(self.seed, "step", step), own_shard(self.context)
        if self.parts > 1:
            sample_for_full_batch(self.task.trained)
            options: dict[str, Any] = {"parts": self.parts, "modules": self._modules(), "seed": seed}
            return accumulate(self.losses, self.scaler.scale, step, batch, shard=shard, **options)
        torch.manual_seed(seed)
        with batch_shard(shard):
            values = self.losses(step, batch)
        self.scaler.scale(values["loss/total"]).backward()
        return values

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
        advice = f"Lower {self.name}.batch_size or the crop (crop_height, crop_width of its augmentation)"
        if self.context.on_oom == "accumulate":
            left = self.context.world > 1 and finer(batch_size(batch), self.parts)
            return advice if left else f"{advice}: smaller micro-batches are not left or do not help"
        return (
            f"{advice}, or raise {self.name}.accumulate (now {self.parts}): the batch stays and is computed in so "
            "many parts; runtime.on_oom: accumulate does so by itself"
        )
