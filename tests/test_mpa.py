import math
from pathlib import Path

import numpy as np
import pytest
import torch

from panoda.methods.mpa import mpa_loss
from panoda.methods.parts.class_features import class_means, resize_label

PARITY = Path(__file__).parents[2] / "shared/parity/mpa_feature_loss_released.npz"


@pytest.mark.skipif(not PARITY.exists(), reason="parity fixtures are not here")
def test_released_variant_matches_the_released_code():
    data = np.load(PARITY)
    features = torch.tensor(data["features"], requires_grad=True)
    label = torch.tensor(data["labels"]).long()
    loss = mpa_loss(features, label, torch.tensor(data["prototypes"]), normaliser="released")
    loss.backward()
    assert loss.item() == pytest.approx(float(data["loss"]), abs=1e-5)
    assert np.abs(features.grad.numpy() - data["grad"]).max() < 1e-8
    # The released code takes the corner of each cell.
    small = resize_label(label, (features.shape[-2], features.shape[-1]), corner=True)
    means, _ = class_means(features.detach(), small, 19)
    assert np.abs(means.numpy() - data["batch_class_means"]).max() < 1e-5


def test_hand_computed_pixel_normaliser():
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 2)  # pixels (2, 0) and (0, 1)
    label = torch.tensor([[[0, 255]]])
    prototypes = torch.tensor([[0.0, 3.0]])
    temperature, share = 2.0, 0.75

    def softmax(a, b):
        total = math.exp(a) + math.exp(b)
        return math.exp(a) / total, math.exp(b) / total

    p, f = softmax(0.0, 1.5), softmax(1.0, 0.0)
    kl = sum(a * math.log(a / b) for a, b in zip(p, f, strict=True))
    hard = -math.log(softmax(2.0, 0.0)[1])
    expected = share * temperature**2 * kl + (1 - share) * hard  # one labelled pixel
    loss = mpa_loss(features, label, prototypes, temperature=temperature, soft_share=share)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_missing_prototypes_and_ignored_pixels_add_nothing():
    features = torch.randn(1, 4, 2, 2, requires_grad=True)
    label = torch.tensor([[[0, 0], [1, 255]]])
    prototypes = torch.randn(2, 4)
    loss = mpa_loss(features, label, prototypes, torch.tensor([False, True]))
    loss.backward()
    touched = features.grad.abs().sum(dim=1)[0] > 0
    assert touched.tolist() == [[False, False], [True, False]]
    nothing = mpa_loss(features, label, prototypes, torch.tensor([False, False]))
    assert nothing.item() == 0


def test_a_feature_at_its_prototype_has_no_soft_loss():
    prototypes = torch.randn(3, 5)
    features = prototypes[[0, 2]].T.reshape(1, 5, 1, 2)
    loss = mpa_loss(features, torch.tensor([[[0, 2]]]), prototypes, soft_share=1.0)
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_class_means_are_plain_means():
    features = torch.arange(8.0).reshape(1, 2, 2, 2)
    means, pixels = class_means(features, torch.tensor([[[1, 1], [255, 0]]]), 3)
    assert means.tolist() == [[3.0, 7.0], [0.5, 4.5], [0.0, 0.0]]
    assert pixels.tolist() == [1, 2, 0]


def test_labels_are_resized_by_nearest():
    features = torch.tensor([[[[1.0, 5.0]]]])
    label = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    means, _ = class_means(features, label, 2)
    assert means.flatten().tolist() == [1.0, 5.0]
