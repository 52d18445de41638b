"""The one training loop: guard, clip, step, log, resume.

A step is a function of (seed, step, state): the loop seeds torch from both before every step, and batches
depend on (seed, step) alone, so a killed run that resumes takes exactly the steps it would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from panoda.engine.distributed import agree, barrier, gather, mean
from panoda.engine.guard import StepGuard
from panoda.engine.parallel import full_states
from panoda.engine.preemption import stop_requests
from panoda.engine.resume_points import Stateful, load_resume, save_resume
from panoda.engine.spikes import LossSpikes
from panoda.engine.step import Stepper
from panoda.engine.task import Task
from panoda.system.context import RunContext
from panoda.system.progress import progress_bar


@dataclass
class LoopState:
    """What a loop has done so far.

    Attributes:
        step: Optimiser steps.
        history: A row of named values for every step that was logged or validated.
        best: Largest mean of the validated mIoUs.
        validated: The last step that was validated.
        spikes: Steps whose loss stood out, with their samples; each of several processes judges its share.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    validated: int = 0
    spikes: LossSpikes = field(default_factory=LossSpikes)

    def write_history(self, path: Path) -> None:
        """Write the rows as CSV, one a step."""
        rows = pd.DataFrame(self.history or [{"step": 0.0}])
        rows = rows.groupby("step", as_index=False).first().astype({"step": int})
        rows.to_csv(path, index=False, float_format="%.6g")


def run_loop(
    task: Task,
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    num_steps: int,
    seed: int,
    clip_norm: float,
    context: RunContext,
    description: str,
    validate: Callable[[LoopState], dict[str, float]] | None = None,
    validate_every: int = 0,
    accumulate: int = 1,
) -> LoopState:
    """Train for ``num_steps`` optimiser steps, resuming from ``context.state_dir`` when it holds a point.

    Args:
        scheduler: Stepped once per step.
        clip_norm: Gradient-norm limit; 0 = off.
        description: Progress bar text: the stage's name, perhaps with hyphens.
        validate: Called every ``validate_every`` steps (when above 0) and at the end.
        accumulate: Micro-batches that a batch is computed in (``panoda.engine.accumulation``).

    Raises:
        TrainingDiverged: a loss or gradient is not finite; the last resume point is from before it.
        OutOfMemory: a step does not fit; the message says what to lower.
        NotDeterministic: deterministic mode, and an operator that knows none.
        Preempted: SIGTERM or ctrl-C; the step in hand was finished and saved.
    """
    scaler = torch.amp.GradScaler(context.device.type, enabled=context.dtype is torch.float16)
    spikes = LossSpikes()
    stateful: dict[str, Stateful] = {
        **task.components(),
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
        "spikes": spikes,
    }
    components = full_states(stateful)
    step, extra = load_resume(context.state_dir, components)
    if not context.main:
        spikes.rows = []  # the first process has those of all
    history, best = list(extra.get("history", [])), extra.get("best", -math.inf)
    state = LoopState(step, history, best, extra.get("validated", 0), spikes)
    parts = accumulate
    if context.on_oom == "accumulate":  # a killed run that had run out of memory may again
        parts = max(accumulate, context.micro_batches, extra.get("parts", 1))
    guard = StepGuard(lag=context.device.type == "cuda", scaler=scaler, spikes=spikes)
    take_step = Stepper(
        task,
        optimizer,
        scaler,
        guard,
        context,
        seed=seed,
        clip_norm=clip_norm,
        name=description.replace("-", ""),
        parts=parts,
    )
    compiled = _Compiled(task.trained, context.compile)
    saved = time.monotonic()

    def record(row: dict[str, float]) -> None:
        state.history.append({"step": float(state.step), **row})
        context.logger.log_metrics(row, state.step)

    def save() -> None:
        """Save a resume point; of several processes the first does, and the others wait for it."""
        nonlocal saved
        saved = time.monotonic()
        guard.check()
        _to_the_first(spikes, context)
        done = {"history": state.history, "best": state.best, "validated": state.validated}
        save_resume(
            context.state_dir,
            step=state.step,
            components=components,
            extra=done | {"parts": take_step.parts},
            keep=context.keep_checkpoints,
            write=context.main,
        )
        barrier(context)

    def validate_when_due() -> bool:
        on_schedule = state.step == num_steps or (validate_every and state.step % validate_every == 0)
        if validate is None or not on_schedule or state.validated == state.step:
            return False
        guard.check()
        result = validate(state)
        state.validated = state.step
        record(result)
        save()
        return True

    with progress_bar(enabled=context.progress) as bar, stop_requests() as stop:
        line = bar.add_task(description, total=num_steps, completed=state.step)
        for row in state.history:  # a killed process may not have sent them; who has some skips them
            context.logger.log_metrics({k: v for k, v in row.items() if k != "step"}, int(row["step"]))
        if state.step:
            validate_when_due()  # a run that was killed while it validated
        left = max(0, num_steps - state.step)
        batches = _Paced(islice(task.batches(state.step) if left else (), left), state)
        for batch in batches:
            with compiled:
                values = take_step(state.step, batch)
            state.step += 1
            last = state.step == num_steps
            if state.step % context.log_every == 0 or last:
                guard.check()
                row = {**mean(values, context), "lr": float(max(scheduler.get_last_lr())), **batches.pace()}
                if take_step.parts > 1:
                    row["micro_batches"] = float(take_step.parts)
                record(row)
                bar.update(line, description=f"{description} loss {row['loss/total']:.3f}")
            scheduler.step()
            overdue = 0 < context.checkpoint_minutes * 60 <= time.monotonic() - saved
            asked, late = agree(context, bool(stop), overdue)
            if state.step % context.checkpoint_every == 0 or last or late or asked:
                save()
            if asked:
                stop.obey(f"step {state.step} of {num_steps}")
            if validate_when_due():  # and saved
                batches.restart()
                if agree(context, bool(stop))[0]:
                    stop.obey(f"step {state.step} of {num_steps}")
            bar.update(line, completed=state.step)
    _to_the_first(spikes, context)
    return state


def _to_the_first(spikes: LossSpikes, context: RunContext) -> None:
    """The first process, which writes them, takes over what the others noted of their shares."""
    rows = sorted(sum(gather(spikes.rows, context), []), key=lambda row: row["step"])
    spikes.rows = rows if context.main else []


class _Compiled:
    """Inside, a model is compiled, if that is wanted; torch keeps what it compiled for later runs.

    Validation, whose images have other sizes, is outside: every size would be compiled anew.
    """

    def __init__(self, model: nn.Module, wanted: bool) -> None:
        self._model, self._call = model, None
        if wanted:
            model.compile(dynamic=False)
            self._call, model._compiled_call_impl = model._compiled_call_impl, None

    def __enter__(self) -> None:
        self._model._compiled_call_impl = self._call

    def __exit__(self, *_: object) -> None:
        self._model._compiled_call_impl = None


class _Paced:
    """Batches, how fast steps are taken with them, and how long the loop waits for them."""

    def __init__(self, batches: Iterator[Any], state: LoopState) -> None:
        self._batches, self._state = batches, state
        self.restart()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._waited += time.perf_counter() - start

    def restart(self) -> None:
        """Leave out what was before."""
        self._clock, self._step, self._waited = time.perf_counter(), self._state.step, 0.0

    def pace(self) -> dict[str, float]:
        """Steps per second and share of waiting since the last restart; restarts."""
        passed = time.perf_counter() - self._clock
        steps, waited = self._state.step - self._step, self._waited
        self.restart()
        return {"steps_per_second": steps / passed, "data_wait_share": waited / passed}
