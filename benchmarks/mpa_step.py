"""One full MPA step of Trans4PASS T: ours beside the released mathematics written plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.problem import CLASSES, PUBLISHED, QUICK, SMALL, Sizes, adapt_params, labels, models, pictures
from benchmarks.reference.step import Discriminator as ReferenceDiscriminator
from benchmarks.reference.step import ReferenceStep
from benchmarks.timing import Row, Settings, count_flops, interleaved, peak_flops
from panoda.data.loading.loader import Batch
from panoda.data.loading.transforms import normalise
from panoda.engine.optim import build_optimizer
from panoda.methods.mpa import MPATask
from panoda.methods.parts.adversarial import Adversary
from panoda.methods.parts.discriminator import Discriminator
from panoda.methods.parts.prototypes import PrototypeBank

LR = 2.5e-6


class OurStep:
    """A ``MPATask`` and its optimiser, driven as the training loop drives them."""

    def __init__(self, sizes: Sizes, settings: Settings) -> None:
        """Build models, prototypes and a batch from the seed."""
        seed, device = settings.seed, settings.device
        self.settings, params = settings, adapt_params()
        self.model = models(seed, device)[0].train()
        torch.manual_seed(seed + 1)
        self.discriminator = Discriminator(CLASSES).to(device)
        self.prototypes = torch.randn(CLASSES, self.model.feature_channels).to(device)
        self.weight = torch.rand(CLASSES).to(device) + 0.5
        bank = PrototypeBank(self.prototypes, torch.ones(CLASSES, dtype=torch.bool), ema_momentum=0.999)
        self.source = _batch(sizes.source, sizes.batch, seed, ignored=0.1)
        self.target = _batch(sizes.target, sizes.batch, seed + 1, ignored=0.4)
        if settings.compile:
            self.model.compile()
        self.task = MPATask(
            self.model,
            bank.to(device),
            lambda step: iter([self.source]),
            lambda step: iter([self.target]),
            params=params,
            weight=self.weight,
            adversary=Adversary(self.discriminator, lr=params.discriminator_lr),
            device=device,
        )
        optim = params.optim
        self.optimizer = build_optimizer(
            self.model, name="sgd", lr=LR, weight_decay=optim.weight_decay, momentum=optim.momentum
        )
        self.done = 0

    def __call__(self) -> dict[str, Tensor]:
        """One step; the losses stay on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.settings.autocast():
            values = self.task.losses(self.done, (self.source, self.target))
        values["loss/total"].backward()
        self.optimizer.step()
        values.update(self.task.after_step(self.done))
        self.done += 1
        return {name: value.detach() for name, value in values.items()}


def reference_step(ours: OurStep) -> tuple[ReferenceStep, Callable[[], dict[str, float]]]:
    """The reference with the weights and the batch of ``ours``, and a call of it."""
    device = ours.settings.device
    model = models(ours.settings.seed, device)[1].train()
    discriminator = ReferenceDiscriminator(CLASSES).to(device)
    discriminator.load_state_dict(ours.discriminator.state_dict())
    step = ReferenceStep(model, discriminator, ours.prototypes.clone(), ours.weight, lr=LR)

    def run() -> dict[str, float]:
        images = [normalise(batch["image"].to(device)) for batch in (ours.source, ours.target)]
        source, target = (batch["label"].to(device) for batch in (ours.source, ours.target))
        return step(images[0], source, images[1], target)

    return step, run


def rows(settings: Settings) -> Iterator[Row]:
    """One row per size."""
    wanted = [QUICK] if settings.quick else [PUBLISHED] if settings.published else [SMALL]
    for sizes in wanted:
        ours = OurStep(sizes, settings)
        _, reference = reference_step(ours)
        seconds = interleaved(
            {"ours": ours, "reference": reference}, repeats=settings.repeats, device=settings.device
        )
        flops = count_flops(reference)
        peak = peak_flops(settings.device, settings.dtype or torch.float32)
        yield {
            "sizes": str(sizes),
            "ours s": seconds["ours"],
            "reference s": seconds["reference"],
            "ratio": seconds["reference"] / seconds["ours"],
            "GFLOP": flops / 1e9,
            "share of peak": flops / seconds["ours"] / peak,
        }


def _batch(size: tuple[int, int], count: int, seed: int, *, ignored: float) -> Batch:
    return Batch(
        image=pictures(count, size, seed),
        label=labels(count, size, seed, ignored=ignored),
        valid=torch.ones(count, *size, dtype=torch.bool),
        ids=[str(i) for i in range(count)],
        indices=torch.arange(count),
        rows=torch.arange(size[0]).expand(count, -1) + 0.5,
        columns=torch.arange(size[1]).expand(count, -1) + 0.5,
    )
