"""Joint transforms: geometry is exact and shared by all maps, colours stay in range."""

from __future__ import annotations

import pytest
import torch

from panoda.data.loading.transforms import JointTransform, normalise

H, W = 32, 64


def sample(*, ramp: bool = False) -> dict:
    """Column number in the label, both column and row number in the image."""
    columns = torch.arange(W).expand(H, W).to(torch.uint8)
    rows = torch.arange(H).view(H, 1).expand(H, W).to(torch.uint8)
    image = torch.stack([columns * 4 if ramp else columns, rows, columns])
    valid = torch.ones(H, W, dtype=torch.bool)
    valid[-4:] = False
    return {
        "image": image.contiguous(),
        "label": columns.clone(),
        "valid": valid,
        "id": "x",
        "index": 0,
    }


def apply(seed=0, *, full_circle=False, one=None, **keywords):
    generator = torch.Generator().manual_seed(seed)
    return JointTransform(**{"hflip": 0.0} | keywords)(one or sample(), generator, full_circle=full_circle)


def test_nothing_asked_nothing_changed():
    before = sample()
    after = apply(one=before)
    assert all(torch.equal(after[k], before[k]) for k in ("image", "label", "valid"))
    assert torch.equal(after["rows"], torch.arange(H) + 0.5)
    assert torch.equal(after["columns"], torch.arange(W) + 0.5)
    assert after["id"] == "x" and type(after["image"]) is torch.Tensor


@pytest.mark.parametrize("seed", range(8))
def test_crop_is_joint(seed):
    out = apply(seed, crop_height=16, crop_width=24)
    left, top = int(out["label"][0, 0]), int(out["image"][1, 0, 0])
    whole = sample()
    window = (slice(top, top + 16), slice(left, left + 24))
    assert torch.equal(out["image"], whole["image"][:, *window])
    assert torch.equal(out["label"], whole["label"][window])
    assert torch.equal(out["valid"], whole["valid"][window])


def test_crops_reach_every_position():
    tops = {int(apply(s, crop_height=30, crop_width=24)["image"][1, 0, 0]) for s in range(60)}
    lefts = {int(apply(s, crop_height=30, crop_width=60)["label"][0, 0]) for s in range(60)}
    assert tops == {0, 1, 2} and lefts == {0, 1, 2, 3, 4}


def test_crop_of_a_panorama_crosses_the_seam():
    crossed = 0
    for seed in range(20):
        row = apply(seed, full_circle=True, crop_width=24)["label"][0].long()
        assert ((row.diff() % W) == 1).all()
        crossed += bool((row.diff() < 0).any())
    assert crossed > 3
    for seed in range(20):
        assert (apply(seed, crop_width=24)["label"][0].long().diff() == 1).all()


def test_yaw_roll():
    rolls = set()
    for seed in range(10):
        out = apply(seed, full_circle=True, yaw_roll=True)
        shift = int(out["label"][0, 0])
        rolls.add(shift)
        assert torch.equal(out["image"], sample()["image"].roll(-shift, dims=-1))
        assert torch.equal(out["label"], sample()["label"].roll(-shift, dims=-1))
    assert len(rolls) > 5
    assert torch.equal(apply(yaw_roll=True)["image"], sample()["image"])  # no full circle


def test_hflip():
    out = apply(hflip=1.0)
    for name in ("image", "label", "valid"):
        assert torch.equal(out[name], sample()[name].flip(-1))
    flipped = sum(torch.equal(apply(s, hflip=0.5)["label"], sample()["label"].flip(-1)) for s in range(200))
    assert 70 < flipped < 130


@pytest.mark.parametrize("scale", [1 / 3, 0.75, 1.25, 2.0])
def test_scaled_labels_stay_with_the_image(scale):
    # The image's red channel is 4 x column, so it shows where each pixel came from, to a fraction of a pixel.
    for seed in range(6):
        out = apply(seed, one=sample(ramp=True), scale=(scale, scale), crop_height=8, crop_width=16)
        shown = out["image"][0].float() / 4
        inner = (slice(None), slice(2, -2))  # antialiasing is one-sided at the border
        away = (shown - out["label"].float())[inner]
        assert away.abs().max() <= 0.5 / min(scale, 1) + 0.3
        assert away.mean().abs() < 0.3  # a mask resized with plain nearest would be half a pixel off


def test_scale_enlarges():
    out = apply(scale=(2.0, 2.0), crop_height=16, crop_width=32)
    assert out["label"][0].unique().numel() == 16 and out["label"].shape == (16, 32)


def test_padding():
    found = set()
    for seed in range(20):
        out = apply(seed, scale=(0.5, 0.5), crop_height=24, crop_width=40)
        filled = out["image"][0] == 124
        inside = out["label"] != 255
        assert inside.sum() == 16 * 32 and (out["image"][:, ~inside] == _fill()).all()
        assert not out["valid"][~inside].any()
        assert filled[~inside].all()
        rows, columns = inside.nonzero().amin(dim=0).tolist()
        found.add((rows, columns))
    assert len(found) > 8  # the image lies somewhere else every time


def _fill():
    return torch.tensor([124, 116, 104]).view(3, 1)


def test_small_panorama_is_padded_not_repeated():
    out = apply(full_circle=True, scale=(0.5, 0.5), crop_height=16, crop_width=64, yaw_roll=True)
    row = out["label"][0]
    assert (row == 255).sum() == 32 and row[row != 255].unique().numel() == 32


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_sample_says_which_rows_and_columns_it_shows(scale, mirrored):
    # The image shows its columns (times 4) and rows; where nothing is resized it must say the same exactly.
    for seed in range(6):
        out = apply(
            seed,
            full_circle=True,
            one=sample(ramp=True),
            scale=(scale, scale),
            crop_height=24,
            crop_width=40,
            hflip=float(mirrored),
        )
        rows, columns = out["rows"], out["columns"]
        filled = out["label"] == 255
        assert torch.equal(filled, rows.isnan()[:, None] | columns.isnan()[None, :])
        assert (columns.diff()[columns.diff().isfinite()] == (-1 if mirrored else 1) / scale).all()
        assert (rows.diff()[rows.diff().isfinite()] == 1 / scale).all()
        label = torch.remainder(columns, W).floor()
        if scale == 1:
            assert torch.equal(out["image"][1, :, 20].float(), rows.floor())
            assert torch.equal(out["label"][10].float(), label)
            continue
        row, inside = out["label"][int(rows.isfinite().nonzero()[0])], columns.isfinite()
        away = (row.float() - torch.remainder(columns, W) + 0.5)[inside].abs()
        assert torch.minimum(away, W - away).max() <= 0.75  # the nearest column


def test_contrast_turns_about_the_grey_of_valid_pixels():
    one = sample()
    one["image"] = torch.full((3, H, W), 100, dtype=torch.uint8)
    one["valid"][8:], one["image"][:, 8:] = False, 250
    alone = sample() | {"image": torch.full((3, H, W), 100, dtype=torch.uint8)}
    for seed in range(10):
        found, wanted = (apply(seed, one=x, jitter=0.4)["image"][:, :8] for x in (one, alone))
        assert torch.equal(found, wanted)


def test_valid_band_moves_along():
    out = apply(crop_height=0, hflip=1.0)
    assert out["valid"][:-4].all() and not out["valid"][-4:].any()


def test_colours_change_the_image_only():
    for seed in range(10):
        out, plain = apply(seed, jitter=0.5, exposure=1.0), apply(seed)
        assert torch.equal(out["label"], plain["label"]) and out["image"].dtype == torch.uint8
        assert not torch.equal(out["image"], plain["image"])


def test_exposure_by_hand():
    one = sample()
    one["image"] = torch.full((3, H, W), 100, dtype=torch.uint8)
    values = torch.tensor(
        [int(apply(s, one=one, exposure=1.0)["image"][0, 0, 0]) for s in range(300)]
    ).float()
    # One stop of linear light is a factor 2^(1/2.2) on the encoded value; the exponent lies in 2^-1/2..2^1/2.
    low = 255 * (100 / 255 * 2 ** (-1 / 2.2)) ** (2**0.5)
    high = 255 * (100 / 255 * 2 ** (1 / 2.2)) ** (2**-0.5)
    assert low - 1 <= values.min() < low + 10 and high - 10 < values.max() <= high + 1


def test_jitter_by_hand():
    # A uniform colour has no contrast, so contrast jitter leaves it alone and brightness scales it.
    one = sample()
    one["image"] = torch.full((3, H, W), 100, dtype=torch.uint8)
    values = torch.tensor([int(apply(s, one=one, jitter=0.2)["image"][0, 0, 0]) for s in range(300)])
    assert 80 <= values.min() < 83 and 117 < values.max() <= 120
    # Saturation moves the channels towards or away from their grey.
    one["image"][0] = 200
    gaps = [apply(s, one=one, jitter=0.2)["image"][:, 0, 0].int() for s in range(50)]
    assert len({int(g[0] - g[1]) for g in gaps}) > 10 and all(int(g[1]) == int(g[2]) for g in gaps)


def test_normalise():
    image = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    wanted = torch.tensor([-0.485 / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225])
    out = normalise(image)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.flatten(), wanted)
    torch.testing.assert_close(normalise(image.float() / 255), out)
    assert normalise(image[0]).shape == (3, 1, 1)
