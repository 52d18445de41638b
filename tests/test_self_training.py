"""One step of the teacher's self-training, by hand: whose labels count, and which pixels reach the student."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panoda.config import AugmentParams, OptimParams
from panoda.data.loading.transforms import normalise
from panoda.methods.source_free import SourceFreeParams, SourceFreeTask
from panoda.methods.teacher_mix import TeacherMixParams, TeacherMixTask
from panoda.models.core.colours import in_source_colours


class Colours(nn.Module):
    """Its features are red and green of the normalised image; it likes class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, *, return_features: bool = False, return_auxiliary: bool = False) -> Any:
        if self.training:
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


def _task(**changes: Any) -> TeacherMixTask:
    keywords = {"iterations": 1, "batch_size": 2, "optim": OptimParams(lr=0.1), "colour_transfer": 0.0}
    params = TeacherMixParams(**{**keywords, **changes})
    common = {"params": params, "weight": None, "warp": None, "device": torch.device("cpu")}
    return TeacherMixTask(Colours(), None, None, **common)  # type: ignore[arg-type]


def test_the_student_learns_what_is_pasted_and_what_the_teacher_is_sure_of() -> None:
    """Targets are of class 0 for the teacher; a source of class 1 covers an eighth of each."""
    source = torch.full((2, 3, 16, 16), 20, dtype=torch.uint8)
    target = torch.full((2, 3, 32, 64), 150, dtype=torch.uint8)
    batches = (
        _batch(source, torch.ones(2, 16, 16, dtype=torch.int64)),
        _batch(target, torch.ones(2, 32, 64, dtype=torch.int64)),  # true labels, which nobody reads
    )
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    for threshold, expected in ((0.7, 7 / 8 * right + 1 / 8 * wrong), (0.75, wrong)):
        task = _task(class_mix=1.0, threshold=threshold, ramp=4)
        values = task.losses(0, batches)  # type: ignore[arg-type]
        shown = task.trained.seen[1]
        pasted = (shown[:, 0] != shown[:, 0].amax()).flatten(1).sum(dim=1)
        assert pasted.tolist() == [256, 256]
        assert values["loss/target_ce"].item() == pytest.approx(expected, rel=1e-5)
        weight = values["loss/total"] - values["loss/source_ce"]
        assert weight.item() == pytest.approx(values["loss/target_ce"].item() / 4, rel=1e-4)


def test_colours_of_invalid_pixels_do_not_reach_the_student() -> None:
    """Bands and padding of both domains in any colour: the model sees the same valid source pixels."""
    everything = {"colour_transfer": 1.0, "class_colour_transfer": 1.0, "class_mix": 0.0, "threshold": 0.0}
    random = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 2, 3, 32, 64), generator=random, dtype=torch.uint8)
    label = torch.randint(2, (2, 2, 32, 64), generator=random)
    label[:, :, 24:] = 255  # as preparation and padding leave it
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


def test_the_teacher_labels_valid_pixels_where_it_is_sure() -> None:
    """It says class 0 with probability 0.731 everywhere; invalid pixels keep their label of 255."""
    stored = torch.tensor([1, 255]).repeat(2, 4, 4)
    valid = torch.ones(2, 4, 8, dtype=torch.bool)
    valid[:, 3:] = False
    teacher = _task().teacher
    for threshold, sure in ((0.7, True), (0.75, False)):
        label = teacher.relabel(torch.zeros(2, 3, 4, 8), stored, valid, threshold)
        assert (label[:, :3] == (torch.zeros(1) if sure else stored[:, :3])).all()
        assert torch.equal(label[:, 3:], stored[:, 3:])


def test_what_the_teacher_says_of_other_colours_counts_by_its_weight() -> None:
    """Of a grey image it says class 0 with 0.731; a model that sees red says class 1 of the red version."""
    teacher = _task().teacher
    grey, red = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    odds = lambda x: torch.stack([1 - x[:, 0], 3 * x[:, 0] - 1], dim=1)  # noqa: E731
    teacher.module.forward = odds
    nothing, valid = torch.full((1, 2, 2), 255), torch.ones(1, 2, 2, dtype=torch.bool)
    for weight, expected in ((0.0, 0), (3.0, 1)):
        found = teacher.relabel(grey, nothing, valid, 0.5, versions=[(weight, red)])
        assert (found == expected).all()


def test_a_source_free_step_reads_stored_labels_below_the_threshold() -> None:
    """Two grey images; the teacher is sure of class 0 nowhere or everywhere, and class 1 is stored."""
    image = torch.full((2, 3, 32, 64), 150, dtype=torch.uint8)
    batch = _batch(image, torch.ones(2, 32, 64, dtype=torch.int64))
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    for threshold, expected in ((0.7, right), (0.75, wrong)):
        params = SourceFreeParams(
            iterations=1, batch_size=2, optim=OptimParams(lr=0.1), class_mix=1.0, threshold=threshold
        )
        task = SourceFreeTask(Colours(), None, params=params, device=torch.device("cpu"))  # type: ignore[arg-type]
        assert task.losses(0, batch)["loss/total"].item() == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_source_model_has_its_share_of_the_source_free_result(share: float) -> None:
    common = {"iterations": 1, "batch_size": 2, "optim": OptimParams(lr=0.1), "ema_momentum": 0.0}
    source = nn.BatchNorm1d(2)
    params = SourceFreeParams(**common, source_share=share)
    task = SourceFreeTask(source, None, params=params, device=torch.device("cpu"))  # type: ignore[arg-type]
    for tensor in (source.weight.data, source.running_mean):
        tensor += 4.0
    for step in range(2):
        task.after_step(step)
    for _ in range(2):
        result = task.result()
        torch.testing.assert_close(result.weight.data, torch.full((2,), 5.0 - 4.0 * share))
        torch.testing.assert_close(result.running_mean, torch.full((2,), 4.0 - 4.0 * share))


def test_the_source_free_student_may_see_the_colours_of_the_source() -> None:
    model = Colours()
    model.colours = ((55.0, 5.0, -4.0), (6.0, 7.0, 8.0))  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(60, 120, (2, 3, 32, 64), dtype=torch.uint8, generator=generator)
    batch = _batch(image, torch.ones(2, 32, 64, dtype=torch.int64))
    scaled = image.float() / 255
    recoloured = in_source_colours(model, scaled, torch.ones(2, 32, 64, dtype=torch.bool))
    for chance, seen in ((0.0, scaled), (1.0, recoloured)):
        params = SourceFreeParams(
            iterations=1, batch_size=2, optim=OptimParams(lr=0.1), class_mix=0.0, recolour=chance
        )
        task = SourceFreeTask(model, None, params=params, device=torch.device("cpu"))  # type: ignore[arg-type]
        task.losses(0, batch)  # type: ignore[arg-type]
        torch.testing.assert_close(model.seen[-1], normalise(seen))
