import numpy as np
import torch

from panoda.methods.parts.thresholds import ConfidenceHistogram, quantise


def test_thresholds_equal_the_quantiles_of_all_pixels_at_once():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (4, 50, 50), generator=generator)
    confidence = torch.rand(4, 50, 50, generator=generator) ** 2
    histogram = ConfidenceHistogram(4)
    for one, conf in zip(label, confidence, strict=True):
        histogram.update(one, quantise(conf))
    limits = histogram.thresholds(quantile=0.5, cap=0.9)
    levels = quantise(confidence)
    for k in range(3):
        mine = np.sort(levels[label == k].numpy())
        assert limits.level[k] == mine[len(mine) // 2]
        assert limits.predicted[k] == len(mine)
        assert limits.kept[k] == (mine >= mine[len(mine) // 2]).sum()
    assert limits.level[3] == 0 and limits.predicted[3] == 0


def test_the_cap_bounds_every_threshold():
    histogram = ConfidenceHistogram(1)
    histogram.update(torch.zeros(10, dtype=torch.long), torch.full((10,), 250, dtype=torch.uint8))
    limits = histogram.thresholds(quantile=0.5, cap=0.9)
    assert limits.level[0] == 229
    assert limits.kept[0] == 10


def test_apply_ignores_what_lies_below_and_what_was_ignored():
    histogram = ConfidenceHistogram(2)
    label = torch.tensor([0, 0, 0, 1, 255], dtype=torch.uint8)
    level = torch.tensor([10, 20, 30, 5, 200], dtype=torch.uint8)
    histogram.update(label, level)
    limits = histogram.thresholds(quantile=0.5, cap=0.9)
    assert limits.apply(label, level).tolist() == [255, 0, 0, 1, 255]
    assert limits.kept.tolist() == [2, 1]
