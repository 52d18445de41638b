"""What the tests of several processes let them do; a module of its own, so that workers import little."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from panoda.engine.distributed import barrier
from panoda.engine.launch import on_devices
from panoda.methods.supervised import SupervisedParams
from panoda.system.context import RunContext

ENCODERS: dict[str, dict[str, Any]] = {
    "nano": {"drop_path": 0.2},
    "vit": {"encoder": "vit:vit_tiny_patch16_224", "decoder": "setr_naive", "drop_path": 0.2},
}
IMAGES = {"train": 6, "val": 3}


class Numbers:
    """A logger that keeps every value."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.rows.append((step, dict(metrics)))

    def log_image(self, key: str, image: Any, step: int) -> None: ...

    def log_figure(self, name: str, figure: Any) -> None: ...

    def log_artifact(self, path: Path) -> None: ...


def train(*, root: Path, name: str, encoder: dict[str, Any], context: RunContext) -> dict[str, float]:
    """Stages pretrain, warmup and adapt on the data in ``root``, results below ``root / name``."""
    from panoda.config import AugmentParams, ModelParams, OptimParams
    from panoda.methods.alignment import AlignmentParams
    from panoda.methods.mpa import MPAParams, PrototypeLossParams
    from panoda.methods.supervised import SupervisedParams, SwaParams
    from panoda.methods.teacher_mix import TeacherMixParams
    from panoda.stages.adapt import adapt
    from panoda.stages.pretrain import pretrain
    from panoda.stages.warmup import warmup

    # Adam makes whole steps of gradients that are rounding noise (biases before a norm); SGD does not.
    optim = OptimParams(name="sgd", lr=0.02, clip_norm=5.0)
    common: dict[str, Any] = {"seed": 0, "context": replace(context, log_every=1)}
    trains = {"source_train": root / "source/train", "target_train": root / "target/train"}
    found = pretrain(
        source_train=trains["source_train"],
        source_val=root / "source/val",
        out=root / name / "pretrain",
        model=ModelParams(**encoder),
        params=SupervisedParams(
            iterations=2,
            batch_size=4,
            optim=optim,
            augment=AugmentParams(jitter=0.2, scale=(0.7, 1.3), crop_height=32, crop_width=64),
            validate_every=1,
            swa=SwaParams(start=0.5, every=1, bn_update_batches=2) if context.shard else None,
        ),
        **common,
    )
    found |= warmup(
        checkpoint=root / "start.safetensors",
        **trains,
        out=root / name / "warmup",
        params=AlignmentParams(
            iterations=1, batch_size=2, optim=optim, adversarial_weight=0.1, colour_transfer=0.5
        ),
        **common,
    )
    steps: dict[str, Any] = {"iterations": 2, "batch_size": 2, "optim": optim}
    augment = AugmentParams(yaw_roll=True, jitter=0.2, exposure=0.2)
    bank = PrototypeLossParams(weight=0.01, ema_momentum=0.5, refresh_every=1)
    methods = {
        "adapt": MPAParams(**steps, augment_target=augment, mpa=bank, adversarial_weight=0.1),
        "mixed": TeacherMixParams(
            **steps, augment_target=augment, erp_warp=0.5, class_colour_transfer=0.5, threshold=0.3
        ),
    }
    for out, params in methods.items():
        metrics = adapt(
            checkpoint=root / "start.safetensors",
            **trains,
            pseudo_labels=root / "pseudo_labels",
            prototypes=root / "prototypes",
            out=root / name / out,
            params=params,
            seed=0,
            context=replace(context, log_every=1, logger=_Prefixed(context.logger, out)),
        )
        found |= {f"{out}/{k}": v for k, v in metrics.items()}
    return found


def train_both(*, roots: dict[str, Path], name: str, context: RunContext) -> dict[str, float]:
    """``train`` of every model; several processes keep the weights of the vision transformer in parts."""
    found = {}
    for kind, root in roots.items():
        one = replace(context, shard=kind == "vit", logger=_Prefixed(context.logger, kind))
        values = train(root=root, name=name, encoder=ENCODERS[kind], context=one)
        found |= {f"{kind}/{k}": v for k, v in values.items()}
    return found


class _Prefixed(Numbers):
    def __init__(self, logger: Any, prefix: str) -> None:
        self.logger, self.prefix = logger, prefix

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.logger.log_metrics({f"{self.prefix}/{k}": v for k, v in metrics.items()}, step)


def vanish(*, folder: Path, context: RunContext) -> dict[str, float]:
    """The second process is killed while the first waits for it and the third computes alone."""
    (folder / str(context.rank)).touch()
    if context.rank == 1:
        while not (folder / "2").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    if context.rank == 0:
        barrier(context)
    time.sleep(60)
    return {}


class Endless:
    """A task that draws its batches from the step alone and takes its time."""

    pause, spikes = 0.02, ()

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        torch.manual_seed(0)
        self.trained = torch.nn.Linear(3, 1)
        self.folder, self.rank, self.world = folder, rank, world

    def batches(self, start_step: int) -> Iterator[torch.Tensor]:
        for step in range(start_step, 10**6):
            whole = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
            yield whole.chunk(self.world)[self.rank]

    def losses(self, step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        (self.folder / f"pid{self.rank}").write_text(f"{os.getpid()} {step}")
        time.sleep(self.pause * (1 + self.rank))
        spike = 1e4 if step in self.spikes else 0.0
        return {"loss/total": self.trained(batch).square().mean() + spike}

    def after_step(self, step: int) -> dict[str, torch.Tensor]:
        return {}

    def describe(self, batch: torch.Tensor) -> str:
        return str(len(batch))

    def components(self) -> dict[str, Any]:
        return {"model": self.trained}


def linger(*, folder: Path, steps: int, context: RunContext) -> dict[str, float]:
    """Train for ``steps`` steps; returns the weights."""
    _, task = _train(Endless(folder, context.rank, context.world), steps, context)
    return {f"weight{i}": v for i, v in enumerate(task.trained.weight.detach().flatten().tolist())}


def spike(*, folder: Path, steps: int, context: RunContext) -> dict[str, float]:
    """Losses of the first process stand out at steps 61 and 66, of the second at 62 and 67."""
    task = Endless(folder, context.rank, context.world)
    task.pause, task.spikes = 0.0, (60 + context.rank, 65 + context.rank)
    state, _ = _train(task, steps, context)
    return {f"spike{i}": row["step"] for i, row in enumerate(state.spikes.rows)}


@on_devices
def hungry(*, folder: Path, params: SupervisedParams, context: RunContext) -> dict[str, float]:
    """The second process has memory for one sample from its sixth step on, for none from its eighth on."""
    task = Endless(folder, context.rank, context.world)
    task.pause, plain = 0.0, task.losses

    def losses(step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if context.rank == 1 and len(batch) > (1 if step < 7 else 0) and step >= 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return plain(step, batch)

    task.losses = losses  # type: ignore[method-assign]
    _train(task, params.iterations, context, checkpoint_every=1)
    return {}


def _train(
    task: Endless, steps: int, context: RunContext, *, checkpoint_every: int = 10**6
) -> tuple[Any, Endless]:
    from panoda.engine.loop import run_loop

    optimizer = torch.optim.SGD(task.trained.parameters(), lr=0.1)
    state = run_loop(
        task,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
        num_steps=steps,
        seed=0,
        clip_norm=0.0,
        context=replace(context, checkpoint_every=checkpoint_every, log_every=1),
        description="linger",
    )
    return state, task
