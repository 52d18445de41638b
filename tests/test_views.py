"""Perspective views: where they lie, that values come back on the sphere, and how they mix with the whole."""

from __future__ import annotations

import math

import pytest
import torch
from test_inference import Tiny
from torch import Tensor, nn

from panoda.config import ViewsParams
from panoda.geometry.erp import erp_rays
from panoda.geometry.views import Views, mixed, over_views
from panoda.inference.prediction import predict_logits
from panoda.inference.whole import predict_image

SPHERE = Views(fov_deg=90, pitches=(-90, -45, 0, 45, 90), share=1.0)


class Colour(nn.Module):
    """Answers the normalised colour as logits, and remembers the sizes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append((x.shape[-2], x.shape[-1]))
        return x


def smooth(height: int = 128, width: int = 256, **band: float) -> Tensor:
    """A panorama whose colour is the direction: it has no edge, neither at the seam nor at the poles."""
    rays = erp_rays(height=height, width=width, **band)
    return (127.5 + 100 * rays).round().to(torch.uint8).permute(2, 0, 1)[None]


def test_directions_and_sides():
    ring = Views(fov_deg=90, pitches=(0.0, -35.0)).directions()
    assert len(ring) == 6 + 5  # 60 degrees apart; at 35 degrees of pitch 59 of a great circle
    assert [a for a, e in ring if e == 0] == pytest.approx([k * math.pi / 3 for k in range(6)])
    assert Views(pitches=(90.0,)).directions() == [(0.0, math.pi / 2)]
    # 4 pixels per degree: a focal length of 229.2 pixels, 458.4 across 90 degrees.
    assert Views(pixels_per_degree=4.0).side(1024) == 448 and Views().side(1024) == 320


def test_a_function_of_the_colour_comes_back_on_the_sphere():
    images = smooth().float()
    values, weights = over_views(images, lambda view: 2 * view, SPHERE)
    assert (weights > 0.1).all()
    assert (values - 2 * images).abs().max() < 4  # steps of a pixel: 100 / 40 grey levels, twice


def test_solid_values_stay_and_what_no_view_reaches_is_told():
    values, weights = over_views(torch.full((2, 3, 64, 128), 9.0), lambda view: view, Views(fov_deg=60))
    reached = weights > 1e-6
    assert torch.allclose(values[..., reached], torch.tensor(9.0), atol=1e-3)
    assert reached[32].all() and not reached[0].any() and not reached[-1].any()
    rows = reached.any(dim=1).nonzero().flatten()
    assert rows.min() > 64 * (90 - 32) / 180 - 1 and rows.max() < 64 * (90 + 32) / 180


def test_nothing_breaks_at_the_seam():
    model, images = Colour(), smooth()
    whole = predict_logits(model, images, wrap=True)
    seen = predict_logits(model, images, wrap=True, views=SPHERE)
    turned = predict_logits(model, images.roll(64, dims=-1), wrap=True, views=SPHERE)
    assert (seen - whole).abs().max() < 0.05
    ends = torch.cat([turned[..., -3:], turned[..., :3]], dim=-1)
    inner = turned.roll(-64, dims=-1)
    assert ends.diff(dim=-1).abs().max() <= whole.diff(dim=-1).abs().max() + 0.05
    assert (inner - seen).abs().max() < 0.05


def test_bands_are_looked_up_at_their_latitudes():
    band = {"lat_top": 0.6, "lat_bottom": -0.3}
    images = smooth(48, 256, **band)
    views = Views(fov_deg=80, pitches=(10.0,), share=1.0, pixels_per_degree=2.0)
    seen = predict_logits(Colour(), images, wrap=True, views=views, band=(0.6, -0.3))
    whole = predict_logits(Colour(), images, wrap=True)
    assert (seen - whole)[..., 2:-2, :].abs().max() < 0.1


def test_shares_mix_and_fade_out_where_views_end():
    weights = torch.tensor([[0.0, 0.05, 0.1, 2.0]])
    whole, values = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)
    assert mixed(whole, values, weights, 0.4).flatten().tolist() == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_the_whole_panorama_is_left_out_where_views_alone_count():
    model = Colour()
    predict_logits(model, smooth(), wrap=True, views=SPHERE)
    side = SPHERE.side(256)
    assert set(model.sizes) == {(side, side)}
    model.sizes.clear()
    predict_logits(model, smooth(), wrap=True, views=Views(), scales=(1.0,), flip=True)
    assert len(model.sizes) == 2 * (6 + 1)


def test_images_of_any_size_are_labelled():
    torch.manual_seed(0)
    model = Tiny()
    label = predict_image(model, smooth()[0], height=64, wrap=True, views=Views())[0]
    assert label.shape == (128, 256) and label.dtype == torch.uint8
    colour = predict_image(Colour(), smooth()[0], height=128, wrap=True, views=SPHERE)[0]
    plain = predict_image(Colour(), smooth()[0], height=128, wrap=True)[0]
    assert (colour == plain).float().mean() > 0.98


def test_only_full_circles_have_views():
    with pytest.raises(ValueError, match="full circles, and this is none"):
        predict_logits(Tiny(), smooth(), wrap=False, views=Views())
    model = Tiny()
    model.wraps = True
    with pytest.raises(ValueError, match=r"model\.wrap"):
        predict_logits(model, smooth(), wrap=True, views=Views())


@pytest.mark.parametrize(
    "wrong",
    [{"fov_deg": 170}, {"pixels_per_degree": 0.0}, {"pitches": ()}, {"pitches": (91.0,)}, {"share": 0.0}],
)
def test_views_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        ViewsParams.model_validate(wrong)


def test_the_section_has_the_views_own_defaults():
    assert Views(**ViewsParams().model_dump()) == Views()
