import math

import pytest
import torch

from panoda.engine.losses import (
    auxiliary_cross_entropy,
    class_weights,
    cross_entropy,
    leave_out,
    ohem_cross_entropy,
)


def _two_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 0, 0, 0] = math.log(3.0)  # probabilities 3/4, 1/4
    return logits, torch.tensor([[[0, 1, 255]]])


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    logits, label = _two_pixels()
    expected = (-math.log(0.75) - math.log(0.5)) / 2
    assert cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-6)


def test_weighted_cross_entropy_divides_by_the_weights_of_labelled_pixels():
    logits, label = _two_pixels()
    expected = (-3 * math.log(0.75) - math.log(0.5)) / 4
    assert cross_entropy(logits, label, torch.tensor([3.0, 1.0])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0])])
def test_nothing_labelled_gives_zero_and_zero_gradients(weight):
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 2, 2), 255), weight)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ohem_keeps_pixels_below_the_threshold():
    logits, label = _two_pixels()
    assert ohem_cross_entropy(logits, label, threshold=0.6, min_kept=0.0).item() == pytest.approx(math.log(2))


def test_ohem_fills_up_with_the_hardest_pixels():
    logits, label = _two_pixels()
    loss = ohem_cross_entropy(logits, label, threshold=0.1, min_kept=0.5)
    assert loss.item() == pytest.approx(math.log(2))


def test_class_weights():
    pixels = torch.tensor([81, 9, 0, 10])
    weight = class_weights(pixels, kind="sqrt_inverse", cap=100)
    raw = torch.tensor([0.81, 0.09, 0.10]).rsqrt()
    assert torch.allclose(weight[[0, 1, 3]], raw / raw.mean())
    assert weight[2] == 0
    enet = class_weights(pixels, kind="enet")
    assert (enet[0] / enet[1]).item() == pytest.approx(math.log(1.11) / math.log(1.83), rel=1e-4)
    assert class_weights(pixels, kind="sqrt_inverse", cap=1.2).max() == pytest.approx(1.2)
    assert torch.equal(class_weights(pixels, kind="none"), torch.ones(4))


def test_nothing_labelled_stays_finite_under_a_gradient_scale():
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    for label in (torch.full((1, 2, 2), 255), torch.ones(1, 2, 2, dtype=torch.long)):
        loss = cross_entropy(logits, label, torch.tensor([1.0, 0.0]))  # class 1 never occurs in training
        (65536 * loss).backward()
        assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.0, 4.0, 2.0])])
def test_label_smoothing_is_torchs(weight):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    label[:, :2] = 255
    torchs = torch.nn.functional.cross_entropy(
        logits, label, weight=weight, ignore_index=255, label_smoothing=0.1
    )
    torch.testing.assert_close(cross_entropy(logits, label, weight, label_smoothing=0.1), torchs)
    both = auxiliary_cross_entropy([(0.5, logits), (0.25, logits)], label, weight, label_smoothing=0.1)
    torch.testing.assert_close(both, 0.75 * torchs)
    every = ohem_cross_entropy(logits, label, threshold=1.0, min_kept=0.1, weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(every, torchs)


def test_label_smoothing_by_hand():
    logits, label = _two_pixels()  # 0.8 of the target on the label, 0.1 more on each of both classes
    first = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    expected = (first - math.log(0.5)) / 2
    assert cross_entropy(logits, label, label_smoothing=0.2).item() == pytest.approx(expected, rel=1e-6)
    hard = ohem_cross_entropy(logits, label, threshold=0.6, min_kept=0.1, label_smoothing=0.2)
    assert hard.item() == pytest.approx(-math.log(0.5), rel=1e-6)  # the second pixel alone


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_class_that_a_source_lacks_is_not_taught(smoothing):
    logits = torch.randn(2, 4, 3, 5, requires_grad=True)
    label = torch.randint(0, 3, (2, 3, 5))
    lacking = torch.tensor([[False, False, False, False], [False, False, False, True]])
    loss = cross_entropy(leave_out(logits, lacking), label, label_smoothing=smoothing)
    loss.backward()
    assert (
        torch.isfinite(loss) and bool((logits.grad[0, 3] != 0).all()) and bool((logits.grad[1, 3] == 0).all())
    )
    log_p = [logits[0].log_softmax(dim=0), logits[1, :3].log_softmax(dim=0)]
    own = [-p.gather(0, ids[None])[0] for p, ids in zip(log_p, label, strict=True)]
    expected = torch.stack(
        [(1 - smoothing) * o - smoothing / 4 * p.sum(0) for o, p in zip(own, log_p, strict=True)]
    )
    assert torch.allclose(loss, expected.mean())


def test_classes_are_left_out_where_pixels_come_from_the_source():
    logits = torch.zeros(1, 3, 2, 2)
    where = torch.tensor([[[True, False], [False, False]]])
    found = leave_out(logits, torch.tensor([[False, True, False]]), where)
    assert found.isneginf().nonzero().tolist() == [[0, 1, 0, 0]]
    assert leave_out(logits, None) is logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smoothed_and_weighted_losses_do_not_overflow_in_half_precision(dtype):
    torch.manual_seed(0)
    logits, label = 30 * torch.randn(2, 5, 64, 64), torch.randint(0, 5, (2, 64, 64))
    weight = torch.tensor([10.0, 0.1, 1.0, 5.0, 2.0])
    expected = cross_entropy(logits, label, weight, label_smoothing=0.9)
    with torch.autocast("cpu", dtype=dtype):
        found = cross_entropy(logits, label, weight, label_smoothing=0.9)
    torch.testing.assert_close(found, expected)
