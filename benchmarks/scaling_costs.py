"""Operations, launches and hours of the stages of the published schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from panoda.config import Params
from panoda.config.scenarios import load_scenario
from panoda.deployment.model_table import operations
from panoda.inference.prediction import _scaled, margin_of
from panoda.methods.parts.discriminator import Discriminator
from panoda.models import create_model

HERE = Path(__file__).parent
RESULT = HERE / "scaling.json"
CELL = 4
"""Views of an image are whole cells of this many pixels."""
SOURCE_IMAGES, SOURCE_VAL, TARGET_IMAGES, TARGET_TEST = 2975, 500, 2000, 100
"""Cityscapes train and val; WildPASS2K, DensePASS."""
MODELS = 3
"""Evaluated: source-only, warmed up, adapted."""
CLASSES = 19
CHANNELS = 128
"""Of Trans4PASS-T's features."""
BACKWARD = 3
"""A training step computes and launches about three times what its forward pass does."""
HOUR = 3600.0
Size = tuple[int, int]


def scenario() -> Params:
    """The published schedule."""
    return load_scenario("cs2dp", folder=HERE.parent / "scenarios")


@dataclass(frozen=True)
class Inputs:
    """Everything the tables follow from.

    Attributes:
        measured: Figures of scaling.json.
        counted: Height and width -> operations and launches of one image's forward pass, of scaling.json.
        assumed: scaling.yaml.
        params: The scenario.
    """

    measured: Mapping[str, float]
    counted: Mapping[str, Sequence[float]]
    assumed: Mapping[str, Any]
    params: Params

    @classmethod
    def load(cls) -> Inputs:
        """Read the files of this folder."""
        found = json.loads(RESULT.read_text(encoding="utf-8"))
        assumed = yaml.safe_load((HERE / "scaling.yaml").read_text(encoding="utf-8"))
        return cls(found["figures"], found["counted"], assumed, scenario())

    @property
    def gpu_flops(self) -> float:
        """Operations per second of one GPU, as assumed."""
        return float(self.assumed["gpu_flops"] * self.assumed["utilisation"])

    @property
    def launch_seconds(self) -> float:
        """Of the CPU, for an operator."""
        return self.measured["operator_seconds"] + float(self.assumed["launch_seconds"])

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return int(self.assumed["nodes"] * self.assumed["gpus_per_node"])

    @property
    def cores(self) -> int:
        """Cores of the cluster."""
        return int(self.assumed["nodes"] * self.assumed["cores_per_node"])


@dataclass(frozen=True)
class Cost:
    """Operations and kernel launches."""

    flops: float
    launches: float

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(self.flops + other.flops, self.launches + other.launches)

    def images(self, count: float) -> Cost:
        """So many images at once: no more launches."""
        return Cost(self.flops * count, self.launches)

    def times(self, count: float) -> Cost:
        """One after the other."""
        return Cost(self.flops * count, self.launches * count)

    def seconds(self, inputs: Inputs) -> float:
        """On one GPU."""
        return max(self.flops / inputs.gpu_flops, self.launches * inputs.launch_seconds)


# --- counting ----------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts operators that compute; views are free."""

    def __init__(self) -> None:
        """None yet."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one."""
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not views
        return func(*args, **(kwargs or {}))


def count(params: Params) -> dict[str, tuple[int, int]]:
    """Operations and launches of one image's forward pass, for every size of the schedule."""
    model = create_model(
        params.model.encoder, decoder=params.model.decoder, num_classes=CLASSES, drop_path=0.0
    ).eval()
    source, target = (size_of(params, role) for role in ("source", "target"))
    augment = params.pretrain.augment
    sizes = {(augment.crop_height, augment.crop_width), source, target}
    for scales in (params.pseudo_labels.scales, params.prototypes.scales, params.evaluate.scales):
        sizes |= {*views(source, scales, wrap=False), *views(target, scales, wrap=True)}
    found = {}
    for size in sorted(sizes):
        flops = operations(model, size)  # leaves the model without data
        with torch.no_grad(), Launches() as launches:
            model(torch.empty(1, 3, *size, device="meta"))
        found[_key(size)] = (flops, launches.count)
    return found


def _key(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def discriminator(classes: int, size: Size) -> Cost:
    """One map through the discriminator."""
    model = Discriminator(classes).to("meta")
    height, width = size
    flops = 0
    for layer in model:
        if isinstance(layer, torch.nn.Conv2d):
            height, width = height // 2, width // 2
            flops += 2 * layer.weight.numel() * height * width
    return Cost(flops, len(model))


def views(size: Size, scales: Sequence[float], *, wrap: bool) -> list[Size]:
    """Sizes that the model sees of one image, margins of the circle included."""
    found = []
    for scale in scales:
        height, width = (_scaled(side, scale, CELL) for side in size)
        found.append((height, width + (2 * margin_of(width, CELL) if wrap else 0)))
    return found


@dataclass(frozen=True)
class Task:
    """A stage: units of work and what one costs.

    Attributes:
        name: Stage.
        units: Steps, or images.
        cost: Of one unit on ``batch`` images, forward and, in training, backward.
        batch: Images of a step that GPUs can share (per domain); 0 = units go to any number of GPUs.
        forward_gflop: Of one unit's forward pass.
    """

    name: str
    units: int
    cost: Cost
    batch: int = 0

    def gpus(self, available: int) -> int:
        """As many as divide the batch, like ``runtime.devices: auto``."""
        if not self.batch:
            return available
        return max(n for n in range(1, available + 1) if self.batch % n == 0)

    def hours(self, available: int, inputs: Inputs) -> float:
        """Estimate. Processes that train share a step's operations; each launches all its kernels."""
        count = self.gpus(available)
        if not self.batch:
            return self.units * self.cost.seconds(inputs) / count / HOUR
        return self.units * Cost(self.cost.flops / count, self.cost.launches).seconds(inputs) / HOUR


def tasks(inputs: Inputs) -> list[Task]:
    """The stages of the published schedule that compute."""
    params = inputs.params

    def model(size: Size) -> Cost:
        return Cost(*inputs.counted[_key(size)])

    def passes(size: Size, scales: Sequence[float], *, wrap: bool) -> Cost:
        return sum((model(view) for view in views(size, scales, wrap=wrap)), Cost(0, 0))

    source, target = (size_of(params, role) for role in ("source", "target"))
    crop = (params.pretrain.augment.crop_height, params.pretrain.augment.crop_width)
    # Once for the adversarial loss and once for each domain's update.
    adversary = discriminator(CLASSES, target).times(2) + discriminator(CLASSES, source)
    both = model(source) + model(target) + adversary
    pretrain, warmup, adapt = params.pretrain, params.warmup, params.adapt
    labels = passes(target, params.pseudo_labels.scales, wrap=True).times(1 + params.pseudo_labels.flip)
    sums = passes(source, params.prototypes.scales, wrap=False)
    scores = (
        passes(source, params.evaluate.scales, wrap=False).times(SOURCE_VAL)
        + passes(target, params.evaluate.scales, wrap=True).times(TARGET_TEST)
    ).times(1 / (SOURCE_VAL + TARGET_TEST))
    return [
        _training("pretrain", pretrain.iterations, model(crop), pretrain.batch_size),
        _training("warmup", warmup.iterations, both, warmup.batch_size),
        Task("pseudo_labels", TARGET_IMAGES, labels),
        Task("prototypes", SOURCE_IMAGES, sums),
        _training("adapt", adapt.iterations, both, adapt.batch_size),
        Task("evaluate", MODELS * (SOURCE_VAL + TARGET_TEST), scores),
    ]


def _training(name: str, steps: int, image: Cost, batch: int) -> Task:
    return Task(name, steps, image.images(batch).times(BACKWARD), batch)


def size_of(params: Params, role: str) -> Size:
    """Height and width of prepared images."""
    prepare = params.data.domains[role].prepare
    return prepare.height, prepare.width
