"""A batch in shares: denominators and random draws are those of the whole batch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from panoda.engine.losses import cross_entropy, ohem_cross_entropy
from panoda.methods.mpa import mpa_loss
from panoda.methods.parts.mixing import class_mix_mask, colour_transfer, photometric, place
from panoda.methods.parts.prototypes import PrototypeBank
from panoda.system.shares import BatchShard, batch_shard, denominator, rows

K, B = 5, 4
T = TypeVar("T")


class Meeting:
    """An exchange between two threads."""

    def __init__(self) -> None:
        self.barrier = Barrier(2, timeout=20)
        self.values: list[Tensor | None] = [None, None]

    def of(self, number: int) -> "Side":
        return Side(self, number)


class Side:
    def __init__(self, meeting: Meeting, number: int) -> None:
        self.meeting, self.number = meeting, number

    def sum(self, value: Tensor) -> Tensor:
        return torch.stack(self._all(value)).sum(dim=0)

    def gather(self, value: Tensor) -> Tensor:
        return torch.cat(self._all(value))

    def _all(self, value: Tensor) -> list[Tensor]:
        self.meeting.values[self.number] = value
        self.meeting.barrier.wait()
        found = [v for v in self.meeting.values if v is not None]
        self.meeting.barrier.wait()
        return found


def in_two_shares(compute: Callable[[slice], T]) -> list[T]:
    """``compute`` of both halves of the batch, at the same time."""
    meeting = Meeting()

    def one(number: int) -> T:
        with batch_shard(BatchShard(number, 2, meeting.of(number))):
            return compute(slice(2 * number, 2 * number + 2))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(B, K, 8, 16, generator=generator)
    label = torch.randint(K, (B, 8, 16), generator=generator)
    label[1], label[2, :3] = 255, 255
    return logits, label


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_over_shares_is_the_loss_of_the_batch(batch, weighted):
    logits, label = batch
    weight = torch.linspace(0.5, 2.0, K) if weighted else None
    whole = logits.clone().requires_grad_()
    loss = cross_entropy(whole, label, weight)
    loss.backward()
    parts = logits.clone().requires_grad_()
    mean = torch.stack(in_two_shares(lambda own: cross_entropy(parts[own], label[own], weight))).mean()
    assert mean.item() == pytest.approx(loss.item(), rel=1e-6)
    mean.backward()
    torch.testing.assert_close(parts.grad, whole.grad)
    # The plain mean of the halves' own means is another number: this test can fail.
    own = torch.stack([cross_entropy(logits[s], label[s], weight) for s in (slice(2), slice(2, 4))]).mean()
    assert abs(own.item() - mean.item()) > 1e-3


def test_a_batch_without_labelled_pixels_has_a_loss_of_zero(batch):
    label = torch.full_like(batch[1], 255)
    assert in_two_shares(lambda own: float(cross_entropy(batch[0][own], label[own]))) == [0.0, 0.0]
    assert float(denominator(torch.tensor(0))) == 1.0


def test_hard_pixels_are_those_of_the_batch(batch):
    logits, label = batch
    common = {"threshold": 0.0, "min_kept": 0.25}
    mean = torch.stack(
        in_two_shares(lambda own: ohem_cross_entropy(logits[own], label[own], **common))
    ).mean()
    assert mean.item() == pytest.approx(float(ohem_cross_entropy(logits, label, **common)), rel=1e-6)


def draws(image: Tensor, label: Tensor, reference: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    valid, everywhere = image[:, 0] < 0.9, torch.ones(reference[:, 0].shape, dtype=torch.bool)
    return [
        colour_transfer(image, valid, reference, everywhere, 0.5),
        photometric(image, valid, jitter=0.4, exposure=0.5),
        class_mix_mask(label),
        place(image, label, (12, 40))[0],
        torch.rand(()),
    ]


def test_random_numbers_are_those_of_the_batch(batch):
    label = batch[1]
    image, reference = torch.rand(2, B, 3, 8, 16)
    whole = draws(image, label, reference)
    for number in range(2):
        own = slice(2 * number, 2 * number + 2)
        with batch_shard(BatchShard(number, 2)):
            parts = draws(image[own], label[own], reference[own])
        for one, all_of in zip(parts[:-1], whole[:-1], strict=True):
            assert torch.equal(one, all_of[own])
        # The generator is where it is in the whole batch, too.
        assert torch.equal(parts[-1], whole[-1])


def test_rows_along_another_dimension():
    torch.manual_seed(1)
    whole = torch.rand(3, 4)
    torch.manual_seed(1)
    with batch_shard(BatchShard(1, 2)):
        assert torch.equal(rows(lambda n: torch.rand(3, n), 2, dim=1), whole[:, 2:])


def test_prototypes_and_their_loss_see_the_whole_batch(batch):
    features, label = batch
    start = torch.randn(K, K), torch.ones(K, dtype=torch.bool)
    whole = PrototypeBank(*start, ema_momentum=0.5)
    whole.collect(features, label, domain=0)
    value = mpa_loss(features, label, whole.prototypes)

    def both(own: slice) -> tuple[PrototypeBank, Tensor]:
        bank = PrototypeBank(*start, ema_momentum=0.5)
        bank.collect(features[own], label[own], domain=0)
        return bank, mpa_loss(features[own], label[own], bank.prototypes)

    found = in_two_shares(both)
    for bank, _ in found:
        torch.testing.assert_close(bank.sums, whole.sums)
        assert torch.equal(bank.batches, whole.batches)
    mean = torch.stack([loss for _, loss in found]).mean()
    assert mean.item() == pytest.approx(float(value), rel=1e-5)
