"""A model's own colours: read from its source, kept in its file, given to images at prediction."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor, nn

from panoda.data.loading import mixture as loading
from panoda.inference.prediction import predict_logits
from panoda.inference.whole import predict_image
from panoda.models.core.checkpoint import ModelCard
from panoda.models.core.colours import colour_statistics, in_source_colours, lab_to_rgb, rgb_to_lab

OWN = ((55.0, 5.0, -4.0), (6.0, 7.0, 8.0))


class Looks(nn.Module):
    """Logits are the image itself, so that what is seen can be read back."""

    colours = OWN

    def forward(self, x: Tensor) -> Tensor:
        return x


def noise(height: int = 64, width: int = 128, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(batch, 3, height, width, generator=generator) * 100 + 20).to(torch.uint8)


def everywhere(images: Tensor) -> Tensor:
    return torch.ones(1, *images.shape[-2:], dtype=torch.bool)


def test_images_take_on_the_models_mean_and_deviation():
    images = noise()
    found = in_source_colours(Looks(), images, everywhere(images))
    assert found.dtype == torch.uint8
    mean, std, _ = colour_statistics(rgb_to_lab(found.float() / 255), everywhere(images))
    for own, value in zip(OWN, (mean, std), strict=True):
        torch.testing.assert_close(value[0].flatten(), torch.tensor(own), atol=0.3, rtol=0)


def test_cielab_is_that_of_scikit_image():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) ** 2
    last = lambda x: x.permute(0, 2, 3, 1).numpy()  # noqa: E731
    lab = rgb_to_lab(images)
    np.testing.assert_allclose(last(lab), rgb2lab(last(images.double())), atol=0.02)
    np.testing.assert_allclose(last(lab_to_rgb(lab)), lab2rgb(last(lab.double())), atol=1e-3)
    torch.testing.assert_close(lab_to_rgb(lab), images, atol=1e-3, rtol=0)


def test_ignored_pixels_do_not_count():
    images, banded = noise(), noise()
    banded[:, :, :8] = 255
    valid = everywhere(images).clone()
    valid[:, :8] = False
    found = in_source_colours(Looks(), banded, valid)
    assert torch.equal(found[:, :, 8:], in_source_colours(Looks(), images[:, :, 8:], valid[:, 8:]))
    nothing = in_source_colours(Looks(), images, torch.zeros_like(valid))
    assert torch.equal(nothing, images)


def test_prediction_is_the_mean_of_both_versions():
    images, model = noise(), Looks()
    valid = everywhere(images)
    own = in_source_colours(model, images, valid)
    plain, recoloured = (predict_logits(model, x, wrap=True) for x in (images, own))
    found = predict_logits(model, images, wrap=True, source_colours=0.5, valid=valid)
    torch.testing.assert_close(found, (plain + 0.5 * recoloured) / 1.5)
    flipped = predict_logits(model, images, wrap=True, flip=True, scales=(0.5, 1.0), source_colours=0.5)
    both = [predict_logits(model, x, wrap=True, flip=True, scales=(0.5, 1.0)) for x in (images, own)]
    torch.testing.assert_close(flipped, (both[0] + 0.5 * both[1]) / 1.5)


def test_of_a_whole_panorama_the_poles_do_not_count():
    image, model = noise(64, 128, 1)[0], Looks()
    poles = image.clone()
    poles[:, :16], poles[:, 48:] = 255, 0
    changed, before = (
        predict_image(model, x, height=64, wrap=True, source_colours=100.0)[0] for x in (poles, image)
    )
    assert torch.equal(changed[18:46], before[18:46])


def test_a_model_without_colours_says_what_to_do():
    model = Looks()
    model.colours = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"set source_colours to 0, or train the source model again"):
        predict_logits(model, noise(), wrap=True, source_colours=1.0)


def test_colours_of_a_mixture_count_by_weight(monkeypatch):
    class Part(list):
        pass

    def part(level: int, count: int) -> Part:
        image = torch.full((3, 8, 16), level, dtype=torch.uint8)
        image[:, :4] += 50
        return Part({"image": image, "valid": torch.ones(8, 16, dtype=torch.bool)} for _ in range(count))

    one, two = part(100, 3), part(40, 200)
    mean, std = loading.mean_colours(one)
    light = lambda level: float(rgb2lab(np.full((1, 1, 3), level / 255))[0, 0, 0])  # noqa: E731
    half = (light(150) - light(100)) / 2
    assert mean == pytest.approx((light(100) + half, 0, 0), abs=0.02) and std[0] == pytest.approx(
        half, rel=0.01
    )
    monkeypatch.setattr(loading, "Mixture", SimpleNamespace)
    mixture = SimpleNamespace(parts={"a": one, "b": two}, sampling=((3, 3.0), (200, 1.0)))
    mean, _ = loading.mean_colours(mixture)
    other = (light(90) + light(40)) / 2
    assert mean[0] == pytest.approx((3 * (light(100) + half) + other) / 4, abs=0.02)


def test_colours_in_rgb_of_an_older_file_are_not_known():
    told = {"name": "m", "arguments": {}, "label_space": "x", "class_names": ("a",), "stage": "s", "seed": 0}
    assert ModelCard(**told, colours=((0.5, 0.4, 0.3), (0.1, 0.1, 0.1))).colours is None
    assert ModelCard(**told, colours=OWN).colours == OWN
