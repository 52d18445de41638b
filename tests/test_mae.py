"""The masked autoencoder against the released numbers, transformers, and what can be worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from parity import RELEASED, filled, image, layout_of, released_layout
from torch import Tensor

from benchmarks.mae import SIZES, transformers_mae
from panoda.models.core.errors import CheckpointError
from panoda.models.mae import DECODER, MaskedAutoencoder, load_released, noise_by_area, reconstruction

TINY = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    **{"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
}
FIXED = ("pos_embed", "decoder_pos_embed")


def steps(count: int, patches: int) -> Tensor:
    """The noise of the fixtures."""
    values = (np.arange(count * patches, dtype=np.float64) * 0.6180339887) % 1
    return torch.from_numpy(values.astype(np.float32)).view(count, patches)


def sine_filled(model: MaskedAutoencoder, layout: list[tuple[str, list[int]]]) -> None:
    own = model.state_dict()
    weights = filled(layout)
    load_released(model, {key: own[key] if key in FIXED else value for key, value in weights.items()})


@pytest.mark.skipif(not (RELEASED / "mae_a.json").is_file(), reason="no ../shared beside the checkout")
def test_numbers_of_the_released_code() -> None:
    about = json.loads((RELEASED / "mae_a.json").read_text())
    expected = dict(np.load(RELEASED / "mae_a.npz"))
    model = MaskedAutoencoder(**about["config"])
    assert layout_of(model.state_dict()) == released_layout("mae_a")
    sine_filled(model, released_layout("mae_a"))
    count, side = about["batch"], about["config"]["img_size"]
    images = image((count, 3, side, side))
    noise = steps(count, math.prod(model.native))
    np.testing.assert_allclose(model.pos_embed[0, :, ::5].detach(), expected["pos_embed"], atol=1e-6)
    for norm_pix_loss, name in ((False, "pixels"), (True, "norm")):
        model.zero_grad()
        loss, prediction, mask = model(
            images, mask_ratio=about["mask_ratio"], noise=noise, norm_pix_loss=norm_pix_loss
        )
        loss.backward()
        np.testing.assert_allclose(loss.item(), expected[f"loss_{name}"], rtol=1e-5)
        np.testing.assert_allclose(prediction.detach()[:, :, ::7], expected["pred"], atol=1e-4)
        np.testing.assert_array_equal(mask, expected["mask"])
        for key, parameter in (
            ("patch", model.patch_embed.proj.weight),
            ("mask_token", model.mask_token),
            ("decoder_pred", model.decoder_pred.weight),
        ):
            np.testing.assert_allclose(parameter.grad.norm(), expected[f"grad_{key}_{name}"], rtol=1e-3)


def test_numbers_of_transformers() -> None:
    pytest.importorskip("transformers")
    ours = MaskedAutoencoder(**TINY)
    theirs = transformers_mae(ours)
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    expected = theirs(images, noise=noise)
    loss, prediction, mask = ours(images, mask_ratio=0.75, noise=noise, norm_pix_loss=True)
    torch.testing.assert_close(prediction, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.loss)
    assert torch.equal(mask, expected.mask)
    loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(
        ours.cls_token.grad, theirs.vit.embeddings.cls_token.grad, atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize("size", [(32, 64), (96, 16)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    model = MaskedAutoencoder(**TINY)
    other = MaskedAutoencoder(**{**TINY, "img_size": size})
    tables = {key: other.state_dict()[key] for key in FIXED}
    other.load_state_dict({**model.state_dict(), **tables})
    images, patches = torch.randn(2, 3, *size), size[0] * size[1] // 64
    noise = torch.rand(2, patches)
    with torch.no_grad():
        loss, prediction, mask = model(images, mask_ratio=0.75, noise=noise)
        expected = other(images, mask_ratio=0.75, noise=noise)[0]
    assert prediction.shape == (2, patches, 192) and mask.sum(dim=1).tolist() == [patches * 0.75] * 2
    torch.testing.assert_close(loss, expected)


def test_only_removed_patches_count_and_only_kept_ones_are_seen() -> None:
    model = MaskedAutoencoder(**TINY)
    images, noise = torch.randn(1, 3, 32, 32), torch.rand(1, 16)
    loss, prediction, mask = model(images, mask_ratio=0.75, noise=noise)
    error = (prediction - model.patchify(images)).square().mean(dim=2)
    torch.testing.assert_close(loss, error[mask == 1].mean())
    hidden = model.unpatchify(mask[..., None].expand(-1, -1, 192), (4, 4))
    assert hidden.mean() == 0.75
    again = model(images + 100 * hidden, mask_ratio=0.75, noise=noise)[1]
    torch.testing.assert_close(again, prediction)
    model.requires_grad_(False)
    images.requires_grad_()
    model(images, mask_ratio=0.75, noise=noise)[1].square().sum().backward()
    assert images.grad is not None and not (images.grad * hidden).any() and (images.grad * (1 - hidden)).any()


def test_patches_are_pixels_row_by_row_with_colours_last() -> None:
    model = MaskedAutoencoder(**TINY)
    images = torch.arange(3 * 16 * 24.0).view(1, 3, 16, 24)
    patches = model.patchify(images)
    assert patches.shape == (1, 6, 192)
    assert patches[0, 4, :4].tolist() == [
        images[0, 0, 8, 8],
        images[0, 1, 8, 8],
        images[0, 2, 8, 8],
        images[0, 0, 8, 9],
    ]
    assert torch.equal(model.unpatchify(patches, (2, 3)), images)


def test_a_perfect_prediction_gives_back_the_image_whatever_the_targets() -> None:
    model = MaskedAutoencoder(**TINY)
    images = torch.rand(2, 3, 32, 32) + torch.randn(2, 3, 1, 1)
    patches = model.patchify(images)
    mask = (torch.rand(2, 16) < 0.75).float()
    mean, deviation = patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()
    for prediction, norm in ((patches, False), ((patches - mean) / deviation, True)):
        seen, whole = reconstruction(model, images, prediction, mask, norm_pix_loss=norm)
        torch.testing.assert_close(whole, images, atol=1e-5, rtol=1e-5)
        assert (model.patchify(seen)[mask == 1] == 0).all()
        assert torch.equal(model.patchify(seen)[mask == 0], patches[mask == 0])


def test_removal_by_area() -> None:
    """As many removed from every image; the first to go is drawn in proportion to its area."""
    torch.manual_seed(0)
    area = torch.tensor([4.0, 2.0, 1.0, 1.0])
    noise = noise_by_area(torch.rand(40000, 4), area)
    first = noise.argmax(dim=1).bincount() / 40000
    torch.testing.assert_close(first, area / area.sum(), atol=0.01, rtol=0)
    model = MaskedAutoencoder(**TINY)
    latitude = torch.tensor([67.5, 22.5, -22.5, -67.5]).deg2rad().cos().repeat_interleave(4)
    noise = noise_by_area(torch.rand(2000, 16), latitude)
    mask = model(torch.zeros(2000, 3, 32, 32), mask_ratio=0.5, noise=noise)[2]
    assert (mask.sum(dim=1) == 8).all()
    rows = mask.view(2000, 4, 4).mean(dim=(0, 2))
    assert rows[1] > 1.5 * rows[0] and abs(rows[0] - rows[3]) < 0.03 and abs(rows[1] - rows[2]) < 0.03
    equal = noise_by_area(torch.full((1, 4), 0.0), torch.ones(4))
    assert torch.isfinite(equal).all()


def test_initial_values_and_what_decays() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(img_size=64, **SIZES["tiny"], **{**DECODER, "decoder_depth": 1})
    state = model.state_dict()
    for key in ("patch_embed.proj.weight", "blocks.3.attn.qkv.weight", "decoder_pred.weight"):
        matrix = state[key].flatten(1)
        assert matrix.abs().max() <= (6 / sum(matrix.shape)) ** 0.5 < 1.05 * matrix.abs().max(), key
    assert abs(state["mask_token"].std() - 0.02) < 0.003 and not state["blocks.3.mlp.fc1.bias"].any()
    assert model.no_weight_decay() == {"cls_token", "mask_token", *FIXED}
    assert not model.pos_embed.requires_grad and not model.decoder_pos_embed.requires_grad
    assert len(model.blocks) == 12 and model.blocks[0].attn.fused_attn


def test_half_precision_gives_a_finite_loss_in_full_precision() -> None:
    model = MaskedAutoencoder(**TINY)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = model(torch.randn(2, 3, 32, 32), mask_ratio=0.75, norm_pix_loss=True)
    assert loss.dtype is torch.float32 and loss.isfinite()


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 0.01, 0.99])
def test_a_ratio_must_keep_and_remove_something(ratio: float) -> None:
    model = MaskedAutoencoder(**TINY)
    if ratio == 0.01:  # one of sixteen: int(16 * 0.99) = 15
        assert model(torch.zeros(1, 3, 32, 32), mask_ratio=ratio)[2].sum() == 1
        return
    with pytest.raises(ValueError, match=f"mask_ratio is {ratio}, which keeps .* such as 0.75"):
        model(torch.zeros(1, 3, 32, 32), mask_ratio=ratio)


def test_mistakes_are_named() -> None:
    model = MaskedAutoencoder(**TINY)
    with pytest.raises(ValueError, match=r"30 x 50 pixels .* patches of 8; set the crop .* 32 x 48"):
        model(torch.zeros(1, 3, 30, 50), mask_ratio=0.75)
    with pytest.raises(ValueError, match="no whole number of patches of 8"):
        MaskedAutoencoder(**{**TINY, "img_size": (30, 32)})


def test_other_weights_are_refused_with_their_keys() -> None:
    model = MaskedAutoencoder(**TINY)
    state = model.state_dict()
    load_released(model, {key: value + 1 for key, value in state.items()})
    wrong = {**state, "head.weight": torch.zeros(2), "norm.bias": torch.zeros(7)}
    del wrong["mask_token"]
    with pytest.raises(CheckpointError) as error:
        load_released(model, wrong)
    for part in ("1 missing: mask_token", "unexpected: head.weight", r"norm.bias is (7,), expected (24,)"):
        assert part in str(error.value)
