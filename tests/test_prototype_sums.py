import torch

from panoda.methods.parts.prototype_sums import PrototypeSums
from panoda.methods.parts.prototypes import DomainPrototypes
from panoda.methods.parts.thresholds import ConfidenceHistogram


def test_a_sum_by_hand():
    """One class; features 1, 2, 4 at levels 10, 20, 30: the mean from each level on."""
    sums = PrototypeSums(1, 1, cap=25 / 255)
    features = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3)
    zero = torch.zeros(1, 1, 3, dtype=torch.long)
    sums.update(features, zero, zero, torch.tensor([[[10, 20, 30]]], dtype=torch.uint8))
    assert sums.total.shape == (1, 26, 1)
    for level, mean in ((0, 7 / 3), (10, 7 / 3), (11, 3.0), (20, 3.0), (21, 4.0), (25, 4.0)):
        total, images = sums.at(torch.tensor([level]))
        assert images.tolist() == [1] and abs(float(total) - mean) < 2**-30


def test_it_equals_a_second_pass_with_the_thresholds_known():
    generator = torch.Generator().manual_seed(0)
    classes, dim, shape = 4, 5, (6, 16, 24)
    features = torch.randn(shape[0], dim, 8, 12, generator=generator)
    prediction = torch.randint(0, classes, shape, generator=generator)
    other = torch.randint(0, classes, shape, generator=generator)
    label = torch.where(torch.rand(shape, generator=generator) < 0.7, prediction, other)
    label[:, -2:] = 255
    label[2] = 255  # an image without any
    level = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    histogram = ConfidenceHistogram(classes)
    histogram.update(label, level)
    sums = PrototypeSums(classes, dim, cap=0.9)
    for part in (slice(0, 4), slice(4, 6)):
        sums.update(features[part], prediction[part], label[part], level[part])
    for quantile in (0.0, 0.3, 0.5, 0.999):
        limits = histogram.thresholds(quantile=quantile, cap=0.9)
        second = DomainPrototypes(classes, dim)
        second.update(features, prediction, limits.apply(label, level))
        total, images = sums.at(limits.level)
        assert torch.equal(images, second.images) and images.max() == 5
        assert torch.allclose(total, second.total, rtol=1e-5, atol=1e-5)
    assert limits.level.max() == 229  # the cap
