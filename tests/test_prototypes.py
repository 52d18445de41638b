import torch

from panoda.methods.parts.prototypes import DomainPrototypes, PrototypeBank, mutual


def _map(values: list[list[float]]) -> torch.Tensor:
    """One image of one row whose pixels have these feature vectors."""
    return torch.tensor(values).T.reshape(1, len(values[0]), 1, len(values))


def test_only_agreeing_pixels_count_and_images_weigh_the_same():
    domain = DomainPrototypes(3, 2)
    domain.update(
        _map([[1.0, 0.0], [3.0, 0.0], [9.0, 9.0]]),
        prediction=torch.tensor([[[0, 0, 1]]]),
        label=torch.tensor([[[0, 0, 2]]]),
    )
    domain.update(_map([[6.0, 2.0]] * 3), torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 255, 1]]]))
    assert domain.mean().tolist() == [[4.0, 1.0], [6.0, 2.0], [0.0, 0.0]]
    assert domain.seen().tolist() == [True, True, False]
    assert domain.images.tolist() == [2, 1, 0]


def test_mutual_prototypes():
    source, target = torch.full((4, 1), 2.0), torch.full((4, 1), 6.0)
    seen_s, seen_t = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    mean, seen = mutual(source, seen_s, target, seen_t)
    assert mean.flatten().tolist() == [4.0, 2.0, 6.0, 0.0]
    assert seen.tolist() == [True, True, True, False]


def test_ema_by_hand():
    """Class 0 in both domains, 1 in the target alone, 2 absent, 3 missing at first."""
    bank = PrototypeBank(
        torch.tensor([[10.0], [10.0], [10.0], [0.0]]),
        torch.tensor([True, True, True, False]),
        ema_momentum=0.9,
    )
    bank.collect(_map([[2.0], [4.0]]), torch.tensor([[[0, 0]]]), domain=0)  # mean 3
    bank.collect(_map([[5.0], [0.0]]), torch.tensor([[[0, 255]]]), domain=0)  # mean 5 -> source mean 4
    bank.collect(_map([[8.0], [20.0]]), torch.tensor([[[0, 1]]]), domain=1)  # target means 8 and 20
    bank.collect(_map([[7.0], [7.0]]), torch.tensor([[[3, 3]]]), domain=1)
    bank.refresh()
    expected = torch.tensor([0.9 * 10 + 0.1 * 6, 0.9 * 10 + 0.1 * 20, 10.0, 7.0])
    assert torch.allclose(bank.prototypes.flatten(), expected)
    assert bank.seen.all()
    before = bank.prototypes.clone()
    bank.refresh()  # the collection was cleared: nothing decays towards zero
    assert torch.equal(bank.prototypes, before)


def test_all_state_survives_a_checkpoint():
    bank = PrototypeBank(torch.zeros(2, 3), torch.tensor([True, False]), ema_momentum=0.5)
    bank.collect(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), domain=1)
    other = PrototypeBank(torch.ones(2, 3), torch.tensor([False, False]), ema_momentum=0.5)
    other.load_state_dict(bank.state_dict())
    bank.refresh()
    other.refresh()
    assert torch.equal(bank.prototypes, other.prototypes)
    assert bank.prototypes.abs().sum() > 0
