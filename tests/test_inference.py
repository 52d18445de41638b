"""Whole-panorama prediction: scales, mirror image, no seam, sliding windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from panoda.data.loading.transforms import normalise
from panoda.inference.prediction import predict_features, predict_logits, resize_image, resize_linear
from panoda.inference.whole import _at_working_size, predict_image
from panoda.inference.whole import _enlarged as enlarged
from panoda.models import create_model


class Tiny(nn.Module):
    """Two convolutions with a receptive field of 13 pixels, and features at stride 4."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Conv2d(3, 8, 7, padding=3)
        self.b = nn.Conv2d(8, num_classes, 7, padding=3)
        self.c = nn.Conv2d(3, 6, 7, stride=4, padding=3)
        self.calls: list[tuple[int, ...]] = []
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        self.calls.append(tuple(x.shape))
        logits = self.b(self.a(x).relu())
        return (logits, self.c(x)) if return_features else logits


def images(height: int = 64, width: int = 128, batch: int = 2) -> Tensor:
    """Smooth periodic noise, so that resizing keeps it."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, height // 8, width // 8, generator=generator) * 255
    return resize_linear(coarse, (height, width), wrap=True).to(torch.uint8)


@pytest.fixture
def model() -> Tiny:
    return Tiny().eval()


def test_one_scale_is_the_model_itself(model):
    x = images()
    out = predict_logits(model, x, wrap=False)
    torch.testing.assert_close(out, model(normalise(x)))
    assert out.dtype == torch.float32 and not out.requires_grad


def test_flip_is_the_mean_of_both(model):
    x = images()
    mirrored = model(normalise(x).flip(-1)).flip(-1)
    wanted = (model(normalise(x)) + mirrored) / 2
    torch.testing.assert_close(predict_logits(model, x, flip=True, wrap=False), wanted)


def test_flip_of_the_input_flips_the_output(model):
    x = images()
    options = {"scales": (0.75, 1.0, 1.5), "flip": True, "wrap": True}
    out = predict_logits(model, x, **options)
    torch.testing.assert_close(predict_logits(model, x.flip(-1), **options).flip(-1), out, atol=2e-2, rtol=0)


def test_scales_reach_the_model(model):
    predict_logits(model, images(), scales=(0.5, 1.0, 1.25), wrap=False)
    assert [c[2:] for c in model.calls] == [(32, 64), (64, 128), (80, 160)]
    model.calls.clear()
    predict_logits(model, images(32, 48), scales=(0.5,), wrap=False)
    assert model.calls[0][2:] == (32, 32)  # never below what the models take


@pytest.mark.parametrize("shift", [1, 17, 64, 127])
@pytest.mark.parametrize("flip", [False, True])
def test_rolled_input_gives_rolled_output(model, shift, flip):
    x = images()
    out = predict_logits(model, x, wrap=True, flip=flip)
    rolled = predict_logits(model, x.roll(shift, -1), wrap=True, flip=flip)
    torch.testing.assert_close(rolled, out.roll(shift, -1), atol=1e-4, rtol=0)
    cut = predict_logits(model, x, wrap=False, flip=flip)
    seam = (predict_logits(model, x.roll(shift, -1), wrap=False, flip=flip) - cut.roll(shift, -1)).abs()
    assert seam.max() > 0.1  # without wrap there is a seam: the test can tell


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 8), (0.75, 4), (1.25, 4), (1.5, 2), (2.0, 1)])
def test_other_scales_have_no_seam(model, scale, shift):
    x = images()
    out = predict_logits(model, x, scales=(scale,), wrap=True)
    rolled = predict_logits(model, x.roll(shift, -1), scales=(scale,), wrap=True)
    torch.testing.assert_close(rolled, out.roll(shift, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("width", [100, 126, 131])
def test_odd_widths_have_no_seam(model, width):
    x = images(64, 128)[..., :width]
    out = predict_logits(model, x, scales=(1.0,), wrap=True)
    rolled = predict_logits(model, x.roll(width // 2, -1), scales=(1.0,), wrap=True)
    torch.testing.assert_close(rolled, out.roll(width // 2, -1), atol=1e-4, rtol=0)


def test_features(model):
    x = images()
    logits, features = predict_features(model, x, scales=(0.5, 1.0, 1.25), wrap=True)
    torch.testing.assert_close(logits, predict_logits(model, x, scales=(0.5, 1.0, 1.25), wrap=True))
    assert features.shape == (2, 6, 16, 32)
    _, rolled = predict_features(model, x.roll(32, -1), scales=(0.5, 1.0, 1.25), wrap=True)
    torch.testing.assert_close(rolled, features.roll(8, -1), atol=1e-3, rtol=0)
    _, single = predict_features(model, x, wrap=False)
    torch.testing.assert_close(single, model.c(normalise(x)))


def test_features_of_odd_sizes(model):
    for wrap in (False, True):
        logits, features = predict_features(model, images()[..., :62, :126], scales=(1.0, 0.75), wrap=wrap)
        assert logits.shape[-2:] == (62, 126) and features.shape[-2:] == (16, 32)


def test_mode_is_restored_and_batch_norm_untouched():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).train()
    predict_logits(model, images(), wrap=False)
    assert model.training and model[1].num_batches_tracked == 0


def test_result_may_be_a_target_of_a_loss(model):
    target = predict_logits(model, images(), wrap=True)
    loss = (model(normalise(images())) - target).square().mean()
    loss.backward()
    assert model.a.weight.grad.abs().sum() > 0


def test_autocast(model):
    out = predict_logits(model, images(), wrap=True, dtype=torch.bfloat16)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, predict_logits(model, images(), wrap=True), atol=0.1, rtol=0.05)


# --- resize ----------------------------------------------------------------------------------------


def test_resize_is_torch_interpolate():
    x = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    for size in ((18, 28), (7, 11), (9, 40)):
        wanted = nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(resize_linear(x, size, wrap=False), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            resize_linear(x, size, wrap=False, rows=range(3, 5)), wanted[..., 3:5, :], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("size", [(18, 28), (7, 11), (9, 40), (9, 14), (5, 14), (9, 3), (4, 200)])
def test_periodic_resize_is_that_of_the_panorama_beside_itself(size):
    x = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    thrice = nn.functional.interpolate(
        torch.cat([x, x, x], dim=-1), (size[0], 3 * size[1]), mode="bilinear", align_corners=False
    )
    wanted = thrice[..., size[1] : 2 * size[1]]
    torch.testing.assert_close(resize_linear(x, size, wrap=True), wanted, atol=1e-5, rtol=0)
    found = resize_linear(x, size, wrap=True, rows=range(1, 3))
    torch.testing.assert_close(found, wanted[..., 1:3, :], atol=1e-5, rtol=0)


def test_periodic_resize_of_one_column_is_constant():
    x = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1)
    assert resize_linear(x, (2, 3), wrap=True).flatten().tolist() == [0, 0, 0, 4, 4, 4]


def test_periodic_resize_by_hand():
    x = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    # Centres at 0.25, 0.75, 1.25, 1.75 of pixels centred at 0.5 and 1.5, period 2.
    wanted = torch.tensor([1.0, 1.0, 3.0, 3.0])
    torch.testing.assert_close(resize_linear(x, (1, 4), wrap=True).flatten(), wanted)


# --- whole images ----------------------------------------------------------------------------------


def test_image_at_working_size(model):
    x = images(batch=1)
    out = predict_image(model, x[0], height=64, wrap=True)[0]
    assert out.shape == (64, 128) and out.dtype == torch.uint8
    assert torch.equal(out.long(), predict_logits(model, x, wrap=True).argmax(1)[0])


def test_large_image_is_labelled_at_its_own_size(model):
    x = images(200, 400, batch=1)[0]
    out = predict_image(model, x, height=64, wrap=True)[0]
    assert out.shape == (200, 400) and model.calls[0][2:] == (64, 128 + 64)
    small = predict_image(model, x, height=64, wrap=True, window=64)[0]
    assert (small == out).float().mean() > 0.999


@pytest.mark.parametrize("wrap", [True, False])
def test_windows_change_nothing(model, wrap):
    x = images(64, 512, batch=1)[0]
    whole = predict_image(model, x, height=64, wrap=wrap)[0]
    model.calls.clear()
    pieces = predict_image(model, x, height=64, wrap=wrap, window=200)[0]
    assert torch.equal(whole, pieces)
    assert len(model.calls) == 3 and max(c[3] for c in model.calls) <= 200 + 128


def test_rolled_image_gives_rolled_label(model):
    x = images(128, 256, batch=1)[0]
    for window in (2048, 100):
        out = predict_image(model, x, height=64, wrap=True, window=window)[0]
        rolled = predict_image(model, x.roll(50, -1), height=64, wrap=True, window=window)[0]
        assert (rolled == out.roll(50, -1)).float().mean() > 0.999


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("size", [(64, 128), (128, 256), (100, 90), (40, 80), (200, 401)])
def test_labels_are_those_of_enlarged_logits(size, wrap):
    """Only pixels between classes are worked out; the others have the class of their neighbours."""
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(1, 5, 8, 16), (64, 128), mode="bilinear")
    for logits in (coarse, torch.randn(1, 5, 64, 128)):
        label, confidence = enlarged(logits, size, wrap=wrap)
        expected = resize_linear(logits, size, wrap=wrap).argmax(dim=1)[0]
        assert (label == expected).float().mean() > 0.9995
        sure = logits.softmax(dim=1).amax(dim=1, keepdim=True)
        wanted = 255 * resize_linear(sure, size, wrap=wrap)[0, 0]
        assert (confidence.float() - wanted).abs().max() <= 0.51


def test_strips_change_nothing(model, monkeypatch):
    x = images(200, 400, batch=1)[0]
    whole = predict_image(model, x, height=64, wrap=True)[0]
    monkeypatch.setattr("panoda.inference.whole._STRIP_PIXELS", 2800)
    assert torch.equal(predict_image(model, x, height=64, wrap=True)[0], whole)


def test_real_model_has_less_of_a_seam():
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=19).eval()
    x = images(64, 256, batch=1)
    jump = {}
    for wrap in (False, True):
        out = predict_logits(model, x, wrap=wrap)
        rolled = predict_logits(model, x.roll(128, -1), wrap=wrap).roll(-128, -1)
        # The two differ by what lies at the border of one and in the middle of the other.
        jump[wrap] = (out - rolled)[..., :4].abs().mean() / out.std()
    assert jump[True] < 0.8 * jump[False]
    logits, features = predict_features(model, x, scales=(0.5, 1.0), wrap=True)
    assert logits.shape == (1, 19, 64, 256) and features.shape == (1, model.feature_channels, 16, 64)


@pytest.mark.parametrize("wrap", [True, False])
def test_an_image_is_reduced_strip_by_strip_as_at_once(wrap, monkeypatch):
    monkeypatch.setattr("panoda.inference.whole._STRIP_PIXELS", 5 * 200)
    image = torch.randint(
        0, 256, (3, 113, 200), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    whole = resize_image(image[None], (48, 84), wrap=wrap, margin=0).round().to(torch.uint8)
    interleaved = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for same in (image, interleaved):
        assert torch.equal(_at_working_size(same, (48, 84), wrap=wrap), whole)
