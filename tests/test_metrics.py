"""Confusion matrix against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from panoda.inference.metrics import ConfusionMatrix

LABEL = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 3]], dtype=torch.uint8)
PRED = torch.tensor([[0, 0, 1, 1], [1, 2, 0, 3]])


def filled(num_classes: int = 5) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes)
    matrix.update(PRED, LABEL)
    return matrix


def test_by_hand():
    matrix = filled()
    wanted = torch.zeros(5, 5, dtype=torch.int64)
    wanted[0, 0], wanted[0, 1], wanted[1, 1], wanted[1, 2], wanted[3, 3] = 2, 1, 2, 1, 1
    assert torch.equal(matrix.matrix, wanted)
    iou = matrix.iou()
    # class 0: 2 / 3; class 1: 2 / (3 + 3 - 2); class 2 predicted but absent; class 3: 1; class 4 nowhere.
    torch.testing.assert_close(iou[[0, 1, 3]], torch.tensor([2 / 3, 0.5, 1.0], dtype=torch.float64))
    assert iou[2].isnan() and iou[4].isnan()
    assert matrix.miou() == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert matrix.miou([0, 4]) == pytest.approx(2 / 3)
    assert matrix.miou(range(1, 3)) == pytest.approx(0.5)
    assert math.isnan(matrix.miou([2, 4]))
    assert matrix.pixel_accuracy() == pytest.approx(5 / 7)


def test_one_matrix_not_a_mean_over_images():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    matrix.update(torch.ones(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64))
    assert matrix.iou()[0] == pytest.approx(0.1)


def test_updates_add_up():
    twice = filled()
    twice.update(PRED, LABEL)
    assert torch.equal(twice.matrix, 2 * filled().matrix)


def test_nothing_labelled():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(2, 2), torch.full((2, 2), 255))
    assert matrix.matrix.sum() == 0 and math.isnan(matrix.miou()) and math.isnan(matrix.pixel_accuracy())


def test_255_is_ignored_even_with_256_classes():
    matrix = ConfusionMatrix(256)
    matrix.update(torch.tensor([255, 3]), torch.tensor([255, 3]))
    assert matrix.matrix.sum() == 1


def test_large_counts_are_exact():
    matrix = ConfusionMatrix(2)
    label = torch.zeros(2**22, dtype=torch.uint8)
    for _ in range(5):
        matrix.update(label, label)
    assert int(matrix.matrix[0, 0]) == 5 * 2**22 > 2**24  # float32 counting would stop at 2^24


def test_errors():
    with pytest.raises(ValueError, match=r"\(2,\), label \(3,\)"):
        filled().update(torch.zeros(2), torch.zeros(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_counts_without_waiting():
    matrix = ConfusionMatrix(5)
    pred, label = PRED.cuda(), LABEL.cuda()
    matrix.update(pred, label)
    torch.cuda.set_sync_debug_mode("error")
    try:
        matrix.update(pred, label)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(matrix.matrix.cpu(), 2 * filled().matrix)
    assert matrix.miou() == pytest.approx(filled().miou())
