"""One step of self-training, by hand: what is pasted is learned from, and is no target feature."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panoda.config import AugmentParams, OptimParams
from panoda.methods.mpa import MPAParams, MPATask, PrototypeLossParams, TeacherParams
from panoda.methods.parts.prototypes import PrototypeBank

OPTIM = OptimParams(lr=0.1)
PROTOTYPES = torch.tensor([[0.0, 3.0], [2.0, 0.0]])


class Colours(nn.Module):
    """Its features are red and green of the normalised image; it likes class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, *, return_features: bool = False, return_auxiliary: bool = False) -> Any:
        self.seen.append(x)
        logits = self.bias.view(1, 2, 1, 1).expand(len(x), 2, *x.shape[-2:])
        features = x[:, :2] + 0 * self.bias.sum()
        if return_auxiliary:
            return logits, features, []
        return (logits, features) if return_features else logits


def _batch(image: Tensor, label: Tensor) -> dict[str, Any]:
    count, _, height, width = image.shape
    return {
        "image": image,
        "label": label,
        "valid": torch.ones(label.shape, dtype=torch.bool),
        "ids": ["a", "b"][:count],
        "indices": torch.arange(count),
        "rows": torch.arange(height).expand(count, -1) + 0.5,
        "columns": torch.arange(width).expand(count, -1) + 0.5,
    }


def _task(**changes: Any) -> MPATask:
    keywords = {
        "iterations": 1,
        "batch_size": 2,
        "optim": OPTIM,
        "class_mix": 1.0,
        "colour_transfer": 0.0,
        "teacher": TeacherParams(enabled=False),
        "keep": "student",
    }
    params = MPAParams(**{**keywords, **changes})
    bank = PrototypeBank(PROTOTYPES, torch.tensor([True, True]), ema_momentum=0.5)
    return MPATask(
        Colours(),  # type: ignore[arg-type]
        bank,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        params=params,
        weight=None,
        adversary=None,
        warp=None,
        device=torch.device("cpu"),
    )


def _loss_of_a_pixel(feature: Tensor, *, temperature: float, share: float, per_channel: bool) -> float:
    """Of class 0, whose prototype is (0, 3), by hand."""

    def softmax(one: float, two: float) -> tuple[float, float]:
        total = math.exp(one) + math.exp(two)
        return math.exp(one) / total, math.exp(two) / total

    f = feature.tolist()
    p, q = softmax(0.0, 3.0 / temperature), softmax(f[0] / temperature, f[1] / temperature)
    soft = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / (2 if per_channel else 1)
    hard = -math.log(softmax(*f)[1])
    return share * temperature**2 * soft + (1 - share) * hard


@pytest.mark.parametrize("normaliser", ["pixels", "released"])
def test_pasted_pixels_are_no_target_features(normaliser: str) -> None:
    """Targets are one colour of class 0; a source of class 1 in another colour covers an eighth of each."""
    mpa = PrototypeLossParams(
        weight=1.0, temperature=2.0, soft_share=0.75, normaliser=normaliser, refresh_every=9
    )
    task = _task(mpa=mpa)
    source = torch.full((2, 3, 16, 16), 20, dtype=torch.uint8)
    target = torch.full((2, 3, 32, 64), 150, dtype=torch.uint8)
    target[:, 0] = 90
    batches = (
        _batch(source, torch.ones(2, 16, 16, dtype=torch.int64)),
        _batch(target, torch.zeros(2, 32, 64, dtype=torch.int64)),
    )
    values = task.losses(0, batches)  # type: ignore[arg-type]
    shown = task.trained.seen[1]
    pasted = shown[:, 0] != shown[0, 0, 0, 0]
    assert pasted.flatten(1).sum(dim=1).tolist() == [256, 256]
    # Pasted labels are learned: the logits say class 0 with logit 1 everywhere.
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert values["loss/target_ce"].item() == pytest.approx(7 / 8 * right + 1 / 8 * wrong, rel=1e-5)
    feature = shown[0, :2, 0, 0]
    expected = _loss_of_a_pixel(feature, temperature=2.0, share=0.75, per_channel=normaliser == "released")
    assert values["loss/mpa_target"].item() == pytest.approx(expected, rel=1e-4)
    of_target = task.bank.sums[1]
    assert torch.allclose(of_target[0], feature, rtol=1e-4) and task.bank.batches[1].tolist() == [1, 0]
    assert of_target[1].tolist() == [0, 0]
    assert torch.allclose(task.bank.sums[0][1], task.trained.seen[0][0, :2, 0, 0], rtol=1e-4)


def test_colours_of_invalid_pixels_do_not_reach_the_student() -> None:
    """Bands and padding of both domains in any colour: the model sees the same valid source pixels."""
    everything = {"colour_transfer": 1.0, "class_colour_transfer": 1.0, "class_mix": 0.0}
    random = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 2, 3, 32, 64), generator=random, dtype=torch.uint8)
    label = torch.randint(2, (2, 2, 32, 64), generator=random)
    label[:, :, 24:] = 255  # as preparation, padding and pseudo-labels leave it
    seen = []
    for colour in (0, 255):
        image[:, :, :, 24:] = colour
        batches = tuple(_batch(image[i], label[i]) for i in range(2))
        for batch in batches:
            batch["valid"][:, 24:] = False
        task = _task(augment_target=AugmentParams(jitter=0.3), **everything)
        torch.manual_seed(1)
        task.losses(0, batches)  # type: ignore[arg-type]
        seen.append([x[:, :, :24] for x in task.trained.seen])
    for one, two in zip(*seen, strict=True):
        assert torch.equal(one, two)


def test_the_teacher_replaces_labels_where_it_is_sure_and_keeps_stored_ones_elsewhere() -> None:
    """It says class 0 with probability 0.731 everywhere; invalid pixels keep their label of 255."""
    stored = torch.tensor([1, 255]).repeat(2, 4, 4)
    valid = torch.ones(2, 4, 8, dtype=torch.bool)
    valid[:, 3:] = False
    image = torch.zeros(2, 3, 4, 8)
    for threshold, sure in ((0.7, True), (0.75, False)):
        task = _task(teacher=TeacherParams(threshold=threshold), keep="teacher")
        label = task._relabel(image, stored, valid)
        assert (label[:, :3] == (torch.zeros(1) if sure else stored[:, :3])).all()
        assert torch.equal(label[:, 3:], stored[:, 3:])
