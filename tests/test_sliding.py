"""Sliding windows: where they lie, that they are averaged, and that they go on around the circle."""

from __future__ import annotations

import pytest
import torch
from test_inference import Tiny, images
from torch import Tensor, nn

from panoda.data.loading.transforms import normalise
from panoda.inference.prediction import predict_logits
from panoda.inference.sliding import slide, window_starts
from panoda.inference.whole import predict_image


class Constant(nn.Module):
    """Answers the k-th call with k everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape[-2:]))
        return x.new_full((len(x), 1, *x.shape[-2:]), float(len(self.shapes)))


def pointwise() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 1).eval()


def test_starts_are_those_of_mmsegmentation():
    assert window_starts(512, (512, 341)) == [0]
    assert window_starts(300, (512, 341)) == [0]
    assert window_starts(683, (512, 341)) == [0, 171]
    assert window_starts(853, (512, 341)) == [0, 341]
    assert window_starts(854, (512, 341)) == [0, 341, 342]
    assert window_starts(2048, (512, 341), wrap=True) == [0, 292, 585, 877, 1170, 1462, 1755]


@pytest.mark.parametrize("side", [65, 100, 127, 200])
@pytest.mark.parametrize("sliding", [(64, 64), (64, 43), (64, 1)])
@pytest.mark.parametrize("wrap", [False, True])
def test_windows_leave_no_gap(side, sliding, wrap):
    starts = window_starts(side, sliding, wrap=wrap)
    covered = {(start + k) % side for start in starts for k in range(sliding[0])}
    assert covered == set(range(side)) and len(starts) == len(set(starts))
    assert wrap or max(starts) + sliding[0] == side


def test_overlaps_are_averaged():
    model = Constant()
    out = slide(model, torch.zeros(1, 3, 40, 96), (64, 32), wrap=False)
    assert model.shapes == [(40, 64), (40, 64)]
    assert out[0, 0, 0].tolist() == [1.0] * 32 + [1.5] * 32 + [2.0] * 32
    around = slide(Constant(), torch.zeros(1, 3, 40, 96), (64, 48), wrap=True)
    assert around[0, 0, 0].tolist() == [1.5] * 16 + [1.0] * 32 + [1.5] * 16 + [2.0] * 32


def test_windows_side_by_side_are_windows_alone():
    model, x = Tiny().eval(), images(64, 128)
    out = predict_logits(model, x, wrap=False, sliding=(32, 32))
    for top in range(0, 64, 32):
        for left in range(0, 128, 32):
            part = x[..., top : top + 32, left : left + 32]
            alone = predict_logits(model, part, wrap=False)
            torch.testing.assert_close(out[..., top : top + 32, left : left + 32], alone)
    assert not torch.allclose(out, predict_logits(model, x, wrap=False))


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_a_model_of_single_pixels_sees_no_windows(wrap, scales):
    model, x = pointwise(), images(72, 120)
    options = {"scales": scales, "flip": True, "wrap": wrap}
    out = predict_logits(model, x, **options, sliding=(48, 32))
    torch.testing.assert_close(out, predict_logits(model, x, **options))
    torch.testing.assert_close(
        predict_logits(model, x, wrap=wrap, sliding=(48, 32)), model(normalise(x / 255))
    )


@pytest.mark.parametrize("flip", [False, True])
def test_rolling_by_the_stride_rolls_the_prediction(flip):
    model, x, stride = Tiny().eval(), images(64, 128), 32
    out = predict_logits(model, x, wrap=True, flip=flip, sliding=(64, stride))
    for shift in (stride, 3 * stride):
        rolled = predict_logits(model, x.roll(shift, -1), wrap=True, flip=flip, sliding=(64, stride))
        torch.testing.assert_close(rolled, out.roll(shift, -1))
    cut = predict_logits(model, x, wrap=False, flip=flip, sliding=(64, stride))
    assert not torch.allclose(cut, out)


def test_windows_have_one_size_at_every_scale():
    model, x = Tiny().eval(), images(64, 128)
    predict_logits(model, x, scales=(0.5, 1.0, 2.0), wrap=True, sliding=(64, 48))
    # At half size one window holds the circle, with margins as ever.
    assert [call[-2:] for call in model.calls] == [(32, 64 + 2 * 32)] + [(64, 64)] * (3 + 3 * 6)


def test_a_circle_in_one_window_has_no_seam():
    model, x = Tiny().eval(), images(64, 128)
    out = predict_logits(model, x, wrap=True, sliding=(128, 96))
    torch.testing.assert_close(out, predict_logits(model, x, wrap=True))
    high = images(64, 32)
    assert torch.equal(
        predict_logits(model, high.roll(16, -1), wrap=True, sliding=(32, 32)),
        predict_logits(model, high, wrap=True, sliding=(32, 32)).roll(16, -1),
    )


def test_predict_image_in_windows():
    model = pointwise()
    image = images(60, 200, batch=1)[0]
    whole = predict_image(model, image, height=60, wrap=True)[0]
    assert torch.equal(predict_image(model, image, height=60, wrap=True, sliding=(48, 32))[0], whole)
    tiny = Tiny().eval()
    predict_image(tiny, image, height=60, wrap=True, sliding=(48, 32))
    assert {call[-2:] for call in tiny.calls} == {(48, 48)} and len(tiny.calls) == 2 * 7


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected a stride from 1 to the window"):
        slide(pointwise(), torch.zeros(1, 3, 64, 64), (32, 33), wrap=False)
    model = pointwise()
    model.wraps = True
    with pytest.raises(ValueError, match="closes its input around the circle.*without sliding"):
        predict_logits(model, images(), wrap=True, sliding=(64, 32))
    predict_logits(model, images(), wrap=True, sliding=(128, 64))  # one window holds the circle
