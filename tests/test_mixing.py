import torch

from panoda.methods.parts.mixing import (
    class_colour_transfer,
    class_mix_mask,
    colour_transfer,
    paste,
    photometric,
    place,
)
from panoda.models.core.colours import rgb_to_lab


def test_colour_transfer_takes_mean_and_deviation():
    torch.manual_seed(0)
    image = 0.4 + 0.2 * torch.rand(2, 3, 16, 16)
    reference = 0.3 + 0.3 * torch.rand(1, 3, 8, 24)
    moved = colour_transfer(image, _all(image), reference, _all(reference), 1.0)
    for statistic in (torch.mean, torch.std):
        for b in range(2):
            mine, theirs = (statistic(rgb_to_lab(x), dim=(2, 3)) for x in (moved[b : b + 1], reference))
            assert torch.allclose(mine, theirs, atol=0.5)
    assert torch.equal(colour_transfer(image, _all(image), reference, _all(reference), 0.0), image)


def _all(image: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(image), *image.shape[-2:], dtype=torch.bool)


def test_colours_of_ignore_bands_and_padding_count_nowhere():
    """By hand: 0.25 and 0.35 in turn become 0.5 and 0.7 (lightness); black bands and white padding change nothing."""
    image, reference = torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.5)
    image[..., ::2], reference[..., ::2] = 0.35, 0.7
    valid, there = _all(image), _all(reference)
    image[:, :, 12:], valid[:, 12:] = 1.0, False
    reference[:, :, :6], there[:, :6] = 0.0, False
    moved = colour_transfer(image, valid, reference, there, 1.0)[:, :, :12]
    # The deviation is that of a sample: 192 and 160 pixels.
    stretch = (160 / 159 / (192 / 191)) ** 0.5
    dark, bright = (float(rgb_to_lab(torch.full((1, 3, 1, 1), grey))[0, 0]) for grey in (0.5, 0.7))
    middle, half = (bright + dark) / 2, (bright - dark) / 2
    light = rgb_to_lab(moved)[:, 0]
    assert torch.allclose(light[..., ::2], torch.tensor(middle + half * stretch), atol=1e-2)
    assert torch.allclose(light[..., 1::2], torch.tensor(middle - half * stretch), atol=1e-2)
    there[:, 9:] = False  # 48 pixels are left: too few to trust
    assert torch.equal(colour_transfer(image, valid, reference, there, 1.0), image)


def test_class_mix_picks_half_of_the_classes():
    torch.manual_seed(1)
    label = torch.tensor([[[0, 1, 2, 3, 255]], [[5, 5, 5, 7, 9]]])
    picks = set()
    for _ in range(20):
        mask = class_mix_mask(label)
        assert not mask[0, 0, 4]
        assert mask[0].sum() == 2
        chosen = set(label[1][mask[1]].tolist())
        assert len(chosen) == 2
        assert mask[1].tolist() == [[int(c) in chosen for c in label[1, 0]]]
        picks.add(tuple(mask[0, 0].tolist()))
    assert len(picks) > 2


def test_paste():
    image, onto = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    mask = torch.tensor([[[True, False]]])
    mixed, ids = paste(image, torch.tensor([[[4, 4]]]), onto, torch.tensor([[[7, 8]]]), mask)
    assert mixed[0, 0, 0].tolist() == [1, 0]
    assert ids.tolist() == [[[4, 8]]]


def test_place_keeps_every_pixel_and_wraps():
    torch.manual_seed(2)
    image, label = torch.rand(3, 3, 4, 6), torch.randint(0, 5, (3, 4, 6))
    placed, ids = place(image, label, (8, 10))
    assert placed.shape == (3, 3, 8, 10) and ids.shape == (3, 8, 10)
    assert torch.allclose(placed.sum(dim=(1, 2, 3)), image.sum(dim=(1, 2, 3)))
    assert torch.equal((ids != 255).sum(dim=(1, 2)), torch.full((3,), 24))
    assert (ids[:, :2] == 255).all() and (ids[:, 6:] == 255).all()


def test_place_cuts_what_is_too_large():
    placed, ids = place(torch.rand(1, 3, 12, 20), torch.zeros(1, 12, 20, dtype=torch.long), (8, 10))
    assert placed.shape[-2:] == (8, 10)
    assert (ids == 0).all()


def test_photometric_moves_each_image_differently_and_stays_in_range():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 8, 8).repeat(3, 1, 1, 1)
    moved = photometric(image, _all(image), jitter=0.4, exposure=0.8)
    assert moved.min() >= 0 and moved.max() <= 1
    assert not torch.allclose(moved[0], moved[1], atol=1e-2)
    assert photometric(image, _all(image), jitter=0.0, exposure=0.0) is image


def test_contrast_turns_about_the_grey_of_valid_pixels():
    image, valid = torch.full((20, 3, 8, 8), 0.5), torch.ones(20, 8, 8, dtype=torch.bool)
    alone = image.clone()
    image[:, :, 4:], valid[:, 4:] = 0.9, False
    found = []
    for given in (image, alone):
        torch.manual_seed(3)
        found.append(photometric(given, valid, jitter=0.4, exposure=0.0)[:, :, :4])
    assert torch.allclose(*found) and found[0].std() > 0.05


def test_class_colours_move_to_those_of_the_same_class():
    torch.manual_seed(0)
    label = torch.zeros(1, 16, 32, dtype=torch.long)
    label[:, 8:] = 3
    label[:, :, -4:] = 255
    image = 0.5 + 0.05 * torch.randn(1, 3, 16, 32)
    reference = 0.5 + 0.05 * torch.randn(1, 3, 20, 20)
    reference_label = torch.full((1, 20, 20), 3)
    reference_label[:, :10] = 7
    reference[:, 0, 10:] += 0.2  # class 3 is reddish in the target; class 0 does not occur there
    moved = class_colour_transfer(image, label, reference, reference_label, 1.0)
    here, there = label[0] == 3, reference_label[0] == 3
    assert torch.allclose(moved[0][:, here].mean(1), reference[0][:, there].mean(1), atol=5e-3)
    assert torch.allclose(moved[0][:, here].std(1), reference[0][:, there].std(1), atol=5e-3)
    assert torch.equal(moved[0][:, ~here], image[0][:, ~here])
    assert torch.equal(class_colour_transfer(image, label, reference, reference_label, 0.0), image)
